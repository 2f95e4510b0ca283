"""Small saved pipelines, and a profile with known entropies."""

from tests.support.saved_models import invented, tiny_model, tiny_pipe
from tests.support.shapes_transformer import shapes_transformer

__all__ = ["invented", "shapes_transformer", "tiny_model", "tiny_pipe"]
