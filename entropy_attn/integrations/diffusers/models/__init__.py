"""The denoisers whose attention is routed, and what routing has to know of each."""

from entropy_attn.integrations.diffusers.models.blocks import layer_blocks
from entropy_attn.integrations.diffusers.models.rules import GuidanceLayout, LayerRule, Model, RowArguments
from entropy_attn.integrations.diffusers.models.table import MODELS, find_model, model_of
from entropy_attn.integrations.diffusers.models.train_size import latent_factor
from entropy_attn.integrations.diffusers.models.unet_levels import halvings, layer_halvings

__all__ = [
    "MODELS",
    "GuidanceLayout",
    "LayerRule",
    "Model",
    "RowArguments",
    "find_model",
    "halvings",
    "latent_factor",
    "layer_blocks",
    "layer_halvings",
    "model_of",
]
