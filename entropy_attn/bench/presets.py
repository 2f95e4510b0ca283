"""The presets of `entropy-attn bench`: smaller ones on a CPU, so that everyone can try it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from entropy_attn.bench.implementations.contract import PASSES, TASKS
from entropy_attn.bench.workloads import (
    HEAD_DIMS,
    LENGTHS,
    MODELS,
    SIZES,
    SWEEP_TOKENS,
    Size,
    Workload,
    sweep,
    workloads,
)

# Without FlexAttention and Helion: they compile for each shape, which takes longer than the rest of a small benchmark.
QUICK = (
    "auto", "triton", "ours-sdpa", "sdpa", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "sdpa-fa3", "sdpa-fa4",
    "sdpa-cudnn-python", "flash-attn-2", "flash-attn-3", "flash-attn-4", "tlx", "vk-flash", "vk-cudnn", "vk-efficient",
    "vk-flash-attn-4", "cat-flash", "cat-cudnn", "cat-efficient", "cat-flash-attn-4", "materialised", "chunked",
    "attend-and-excite", "daam", "attention-map-diffusers", "attline",
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """What to measure: sizes of models, a sweep over head dims and lengths, tasks, passes and implementations."""

    models: tuple[tuple[str, Size | None], ...] = ()  # None: the training size
    head_dims: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    tokens: int = SWEEP_TOKENS
    tasks: tuple[str, ...] = TASKS
    passes: tuple[str, ...] = PASSES
    implementations: tuple[str, ...] | None = None  # None: all

    def workloads(self) -> Iterator[Workload]:
        yield from sweep(self.head_dims, self.lengths, tokens=self.tokens)
        for model, size in self.models:
            yield from workloads(model, size)


def _squares(*sides: int) -> tuple[tuple[str, Size | None], ...]:
    return tuple((model, (side, side)) for model in MODELS if not model.startswith("wan") for side in sides)


_WANS = (("wan-1.3b", None), ("wan-14b", None))
GPU = {
    "quick": Preset(
        (("sd15", None), ("sdxl", None)), (64, 128), (1024, 4096, 16_384), tasks=("plain", "entropy", "map"),
        implementations=QUICK,
    ),
    "paper": Preset(
        (*((model, None) for model in MODELS), ("sd15", (1024, 1024)), ("sdxl", (2048, 2048))),
        (40, 64, 80, 128, 160), (256, 1024, 4096, 16_384),
    ),
    "full": Preset((*_squares(*SIZES), *_WANS), HEAD_DIMS, LENGTHS),
}  # fmt: skip
CPU = {
    "quick": Preset(
        (("sd15", (256, 256)),), (40, 64), (256, 1024), 1024, ("plain", "entropy", "map"), ("forward",), QUICK
    ),
    "paper": Preset((("sd15", None), ("sdxl", (512, 512))), (40, 64, 128), (256, 1024, 4096), 4096),
    "full": Preset(tuple((model, None) for model in ("sd15", "sd21", "sdxl", "sd3")), HEAD_DIMS, LENGTHS[:5], 4096),
}  # fmt: skip
PRESETS = tuple(GPU)


def preset(name: str, device_type: str) -> Preset:
    """The preset of this name for a type of device.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return (CPU if device_type == "cpu" else GPU)[name]
