"""This package's attention in models of transformers: a name to choose it by, and maps of text encoders."""

from entropy_attn.integrations.transformers.registration import Registration, register
from entropy_attn.integrations.transformers.text_maps import text_attention_maps, text_self_attention_maps

__all__ = ["Registration", "register", "text_attention_maps", "text_self_attention_maps"]
