"""Fused attention for text-to-image diffusion, with a per-call softmax scale and the attention entropy."""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

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

__all__ = [*_EXPORTS, "__version__"]


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
