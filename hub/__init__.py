"""The package as a kernel of Hugging Face's Hub (docs/hub-kernels.md). A package, so that `python -m hub.export` finds it."""
