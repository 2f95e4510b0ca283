"""Routing the attention of diffusers models through this package."""

from entropy_attn.integrations.diffusers.handle import Handle, apply

__all__ = ["Handle", "apply"]
