"""A small saved pipeline, a small CLIP, a small feature network."""

from tests.support.saved_models import tiny_model, tiny_pipe
from tests.support.tiny_clip import tiny_clip
from tests.support.tiny_features import tiny_features

__all__ = ["tiny_clip", "tiny_features", "tiny_model", "tiny_pipe"]
