"""The attention call as a kernel of Hugging Face's Hub. A package, so that `python -m hub.export` finds it."""
