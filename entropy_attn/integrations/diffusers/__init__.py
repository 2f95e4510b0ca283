"""Routing the attention of diffusers models through this package."""

from entropy_attn.integrations.diffusers.apply import apply
from entropy_attn.integrations.diffusers.handle import Handle

__all__ = ["Handle", "apply"]
