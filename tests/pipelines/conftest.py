"""A small saved pipeline, and a profile with known entropies."""

from tests.support.saved_models import invented, tiny_model, tiny_pipe
from tests.support.tiny_clip import tiny_clip

__all__ = ["invented", "tiny_clip", "tiny_model", "tiny_pipe"]
