"""A small saved pipeline, and a profile with known entropies."""

from tests.support.saved_models import invented, tiny_model, tiny_pipe

__all__ = ["invented", "tiny_model", "tiny_pipe"]
