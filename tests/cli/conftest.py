"""Small saved pipelines, networks for metrics, and a profile with known entropies."""

from tests.support.saved_models import invented, tiny_model, tiny_pipe
from tests.support.shapes_transformer import shapes_transformer
from tests.support.tiny_clip import tiny_clip
from tests.support.tiny_metrics import networks

__all__ = ["invented", "networks", "shapes_transformer", "tiny_clip", "tiny_model", "tiny_pipe"]
