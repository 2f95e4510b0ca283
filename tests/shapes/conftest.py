"""An untrained second model."""

from tests.support.shapes_transformer import shapes_transformer

__all__ = ["shapes_transformer"]
