"""A small saved pipeline."""

from tests.support.saved_models import tiny_model, tiny_pipe

__all__ = ["tiny_model", "tiny_pipe"]
