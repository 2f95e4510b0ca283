"""Everything of diffusers that its documentation does not promise, and what differs between its releases.

tests/integrations/diffusers/test_private_names.py pins each name, and reports the one that moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import diffusers
from diffusers.models import attention_processor
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from diffusers.models.attention_processor import Attention, MochiAttention
from packaging.version import Version

if TYPE_CHECKING:
    import torch

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
    "dtype_argument",
    "has_some_heads",
    "other_processors",
    "parallel_config_of",
]

# What every attention layer of diffusers is one of.
AttentionLayer = Attention | MochiAttention | AttentionModuleMixin

# Processors that compute attention without torch's scaled_dot_product_attention: there is nothing to route.
OTHER_PROCESSORS = (
    "AttnProcessor",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
    "CustomDiffusionAttnProcessor",
    "CustomDiffusionXFormersAttnProcessor",
    "IPAdapterAttnProcessor",
    "IPAdapterXFormersAttnProcessor",
)

# Backends of the dispatcher that end in torch's attention: the default, and those that pick one of its kernels.
PICKED_BACKENDS = tuple(
    getattr(AttentionBackendName, f"_NATIVE_{name}") for name in ("CUDNN", "EFFICIENT", "FLASH", "MATH")
)
TORCH_BACKENDS = (AttentionBackendName.NATIVE, *PICKED_BACKENDS)


def other_processors() -> tuple[type, ...]:
    return tuple(getattr(attention_processor, name) for name in OTHER_PROCESSORS)


def active_backend() -> AttentionBackendName:
    """The dispatcher's backend for a processor that names none."""
    return _AttentionBackendRegistry.get_active_backend()[0]


def backend_of(processor: Any) -> AttentionBackendName | None:
    """The dispatcher's backend for this processor, or None for one that does not use the dispatcher."""
    if not hasattr(processor, "_attention_backend"):
        return None
    return processor._attention_backend or active_backend()


def parallel_config_of(denoiser: Any) -> Any:
    """diffusers' `ParallelConfig` of a model whose sequence is spread over devices; None of any other."""
    config = getattr(denoiser, "_parallel_config", None)
    return None if getattr(config, "context_parallel_config", None) is None else config


def has_some_heads(denoiser: Any) -> bool:
    """Whether a model's heads are spread over devices by diffusers' tensor parallelism."""
    config = getattr(denoiser, "_parallel_config", None)
    return getattr(config, "tensor_parallel_config", None) is not None


def config_of_single_file(weights: Mapping[str, Any]) -> str:
    """The Hub id with the configuration of a single-file checkpoint, by the names and shapes of its weights."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    return fetch_diffusers_config({name: _Shaped(part) for name, part in weights.items()})[
        "pretrained_model_name_or_path"
    ]


class _Shaped:
    """A weight that is not read, only its shape."""

    def __init__(self, part: Any):
        self.shape = tuple(part.get_shape())


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The keyword of `from_pretrained` for the dtype of the weights, which diffusers 0.42 renamed."""
    return {"dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype": dtype}
