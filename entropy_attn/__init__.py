"""Fused attention for text-to-image diffusion, with a per-call softmax scale and the attention entropy."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # for type checkers and editors; at run time a name is imported on first use
    from entropy_attn import guidance as guidance
    from entropy_attn import mix as mix
    from entropy_attn import scale as scale
    from entropy_attn import shapes as shapes
    from entropy_attn.errors import Unsupported as Unsupported
    from entropy_attn.integrations import transformers as transformers
    from entropy_attn.integrations.diffusers.apply import apply as apply
    from entropy_attn.integrations.guidance.attach import attach as attach
    from entropy_attn.integrations.guidance.modular_block import GuidanceBlock as GuidanceBlock
    from entropy_attn.integrations.guidance.weak_pass import WeakPassGuidance as WeakPassGuidance
    from entropy_attn.ops.api import AttentionOutput as AttentionOutput
    from entropy_attn.ops.api import attention as attention
    from entropy_attn.ops.api import scaled_dot_product_attention as scaled_dot_product_attention
    from entropy_attn.ops.api import unsupported_reasons as unsupported_reasons
    from entropy_attn.pipelines.tsam import TSAMFluxPipeline as TSAMFluxPipeline
    from entropy_attn.pipelines.tsam import TSAMStableDiffusion3Pipeline as TSAMStableDiffusion3Pipeline
    from entropy_attn.pipelines.tsam import TSAMStableDiffusionPipeline as TSAMStableDiffusionPipeline
    from entropy_attn.pipelines.tsam import TSAMStableDiffusionXLPipeline as TSAMStableDiffusionXLPipeline
    from entropy_attn.profiling import profile as profile
    from entropy_attn.recorders.entropy import EntropyRecorder as EntropyRecorder
    from entropy_attn.recorders.layer_maps import LayerMapRecorder as LayerMapRecorder
    from entropy_attn.recorders.maps import MapRecorder as MapRecorder
    from entropy_attn.recorders.response import ResponseRecorder as ResponseRecorder
    from entropy_attn.scale import CallInfo as CallInfo

if (Path(__file__).parent / "kernels").is_file():
    raise ImportError(
        "entropy_attn/kernels is a plain file where git has a link to ../kernels: this checkout was made without "
        "symbolic links. Clone with `git clone -c core.symlinks=true`, or put a copy of kernels/ in its place."
    )

# Public name -> (module, attribute or None for the module itself). Resolved on first use, so that importing the package
# needs none of triton, diffusers and transformers.
_EXPORTS: dict[str, tuple[str, str | None]] = {
    "AttentionOutput": ("ops.api", "AttentionOutput"),
    "CallInfo": ("scale", "CallInfo"),
    "EntropyRecorder": ("recorders.entropy", "EntropyRecorder"),
    "GuidanceBlock": ("integrations.guidance.modular_block", "GuidanceBlock"),
    "LayerMapRecorder": ("recorders.layer_maps", "LayerMapRecorder"),
    "MapRecorder": ("recorders.maps", "MapRecorder"),
    "ResponseRecorder": ("recorders.response", "ResponseRecorder"),
    "TSAMFluxPipeline": ("pipelines.tsam", "TSAMFluxPipeline"),
    "TSAMStableDiffusion3Pipeline": ("pipelines.tsam", "TSAMStableDiffusion3Pipeline"),
    "TSAMStableDiffusionPipeline": ("pipelines.tsam", "TSAMStableDiffusionPipeline"),
    "TSAMStableDiffusionXLPipeline": ("pipelines.tsam", "TSAMStableDiffusionXLPipeline"),
    "Unsupported": ("errors", "Unsupported"),
    "WeakPassGuidance": ("integrations.guidance.weak_pass", "WeakPassGuidance"),
    "apply": ("integrations.diffusers", "apply"),
    "attach": ("integrations.guidance", "attach"),
    "attention": ("ops.api", "attention"),
    "guidance": ("guidance", None),
    "mix": ("mix", None),
    "profile": ("profiling", "profile"),
    "scale": ("scale", None),
    "scaled_dot_product_attention": ("ops.api", "scaled_dot_product_attention"),
    "shapes": ("shapes", None),
    "transformers": ("integrations.transformers", None),
    "unsupported_reasons": ("ops.api", "unsupported_reasons"),
}

__all__ = [
    "AttentionOutput",
    "CallInfo",
    "EntropyRecorder",
    "GuidanceBlock",
    "LayerMapRecorder",
    "MapRecorder",
    "ResponseRecorder",
    "TSAMFluxPipeline",
    "TSAMStableDiffusion3Pipeline",
    "TSAMStableDiffusionPipeline",
    "TSAMStableDiffusionXLPipeline",
    "Unsupported",
    "WeakPassGuidance",
    "__version__",
    "apply",
    "attach",
    "attention",
    "guidance",
    "mix",
    "profile",
    "scale",
    "scaled_dot_product_attention",
    "shapes",
    "transformers",
    "unsupported_reasons",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    from entropy_attn.errors import naming_the_extra

    with naming_the_extra(f"entropy_attn.{name}"):
        loaded = import_module(f"{__name__}.{module}")
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
