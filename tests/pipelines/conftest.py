"""A small saved pipeline, and a profile with known entropies."""

from tests.support.saved_models import invented, tiny_model, tiny_pipe
from tests.support.tiny_clip import tiny_clip
from tests.support.tiny_metrics import drawn, networks

__all__ = ["drawn", "invented", "networks", "tiny_clip", "tiny_model", "tiny_pipe"]
