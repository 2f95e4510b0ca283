"""Fused attention for text-to-image diffusion, with a per-call softmax scale and the attention entropy."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers and editors see; at run time a name is imported when it is first asked for
    from . import guidance as guidance
    from . import scale as scale
    from . import shapes as shapes
    from .errors import Unsupported as Unsupported
    from .integrations.diffusers import apply as apply
    from .map_recorder import MapRecorder as MapRecorder
    from .ops import AttentionOutput as AttentionOutput
    from .ops import attention as attention
    from .ops import scaled_dot_product_attention as scaled_dot_product_attention
    from .ops import unsupported_reasons as unsupported_reasons
    from .pipelines.tsam import TSAMStableDiffusionPipeline as TSAMStableDiffusionPipeline
    from .pipelines.tsam import TSAMStableDiffusionXLPipeline as TSAMStableDiffusionXLPipeline
    from .profiling import profile as profile
    from .recorder import EntropyRecorder as EntropyRecorder
    from .scale import CallInfo as CallInfo

if (Path(__file__).parent / "kernels").is_file():
    raise ImportError(
        "entropy_attn/kernels is a plain file where git has a link to ../kernels: this checkout was made without "
        "symbolic links. Clone with `git clone -c core.symlinks=true`, or put a copy of kernels/ in its place."
    )

# Public name -> (module, attribute or None for the module itself). Resolved on first use, so that importing the package
# needs none of triton, diffusers and transformers.
_EXPORTS: dict[str, tuple[str, str | None]] = {
    "AttentionOutput": ("ops", "AttentionOutput"),
    "CallInfo": ("scale", "CallInfo"),
    "EntropyRecorder": ("recorder", "EntropyRecorder"),
    "MapRecorder": ("map_recorder", "MapRecorder"),
    "TSAMStableDiffusionPipeline": ("pipelines.tsam", "TSAMStableDiffusionPipeline"),
    "TSAMStableDiffusionXLPipeline": ("pipelines.tsam", "TSAMStableDiffusionXLPipeline"),
    "Unsupported": ("errors", "Unsupported"),
    "apply": ("integrations.diffusers", "apply"),
    "attention": ("ops", "attention"),
    "guidance": ("guidance", None),
    "profile": ("profiling", "profile"),
    "scale": ("scale", None),
    "scaled_dot_product_attention": ("ops", "scaled_dot_product_attention"),
    "shapes": ("shapes", None),
    "unsupported_reasons": ("ops", "unsupported_reasons"),
}

__all__ = [
    "AttentionOutput",
    "CallInfo",
    "EntropyRecorder",
    "MapRecorder",
    "TSAMStableDiffusionPipeline",
    "TSAMStableDiffusionXLPipeline",
    "Unsupported",
    "__version__",
    "apply",
    "attention",
    "guidance",
    "profile",
    "scale",
    "scaled_dot_product_attention",
    "shapes",
    "unsupported_reasons",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    loaded = import_module(f"{__name__}.{module}")
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
