"""A small saved pipeline, and small networks."""

from tests.support.saved_models import tiny_model, tiny_pipe
from tests.support.tiny_clip import tiny_clip
from tests.support.tiny_features import tiny_features
from tests.support.tiny_metrics import drawn, networks

__all__ = ["drawn", "networks", "tiny_clip", "tiny_features", "tiny_model", "tiny_pipe"]
