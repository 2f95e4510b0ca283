"""Everything of diffusers that its documentation does not promise, in one place.

tests/integrations/diffusers/test_private_names.py pins each name, and says which one moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.models import attention_processor
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from diffusers.models.attention_processor import Attention, MochiAttention

__all__ = [
    "OTHER_PROCESSORS",
    "PICKED_BACKENDS",
    "TORCH_BACKENDS",
    "Attention",
    "AttentionLayer",
    "active_backend",
    "backend_of",
    "config_of_single_file",
    "dispatch_attention_fn",
    "is_context_parallel",
    "other_processors",
]

# What every attention layer of diffusers is one of.
AttentionLayer = Attention | MochiAttention | AttentionModuleMixin

# Processors that compute attention without torch's scaled_dot_product_attention, so that there is nothing to route.
OTHER_PROCESSORS = (
    "AttnProcessor",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
    "CustomDiffusionAttnProcessor",
    "CustomDiffusionXFormersAttnProcessor",
    "IPAdapterAttnProcessor",
    "IPAdapterXFormersAttnProcessor",
)

# Backends of the dispatcher that end in torch's attention: the plain one, and those that pick one of its kernels.
PICKED_BACKENDS = tuple(
    getattr(AttentionBackendName, f"_NATIVE_{name}") for name in ("CUDNN", "EFFICIENT", "FLASH", "MATH")
)
TORCH_BACKENDS = (AttentionBackendName.NATIVE, *PICKED_BACKENDS)


def other_processors() -> tuple[type, ...]:
    return tuple(getattr(attention_processor, name) for name in OTHER_PROCESSORS)


def active_backend() -> AttentionBackendName:
    """What the dispatcher takes for a processor that names none."""
    return _AttentionBackendRegistry.get_active_backend()[0]


def backend_of(processor: Any) -> AttentionBackendName | None:
    """The dispatcher's backend for this processor, or None for one that does not use the dispatcher."""
    if not hasattr(processor, "_attention_backend"):
        return None
    return processor._attention_backend or active_backend()


def is_context_parallel(denoiser: Any) -> bool:
    """Whether the sequence of this model is spread over devices."""
    config = getattr(denoiser, "_parallel_config", None)
    return getattr(config, "context_parallel_config", None) is not None


def config_of_single_file(weights: Mapping[str, Any]) -> str:
    """The Hub id whose configuration a checkpoint in one file has, by the names and shapes of its weights."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    return fetch_diffusers_config({name: _Shaped(part) for name, part in weights.items()})[
        "pretrained_model_name_or_path"
    ]


class _Shaped:
    """A weight that is not read: its shape alone."""

    def __init__(self, part: Any):
        self.shape = tuple(part.get_shape())
