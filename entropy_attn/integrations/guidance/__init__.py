"""Guidance of diffusers pipelines by the maps of their cross-attention."""

from entropy_attn.integrations.guidance.attach import attach

__all__ = ["attach"]
