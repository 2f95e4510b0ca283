"""Generations with the embedded model `shapes`, and with other pipelines made of its components."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
import torch

import entropy_attn as ea

PROMPT = "a red circle and a blue square"
BASE = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}


def relative(shapes: Any, kind: str, *without: str, **more: Any) -> Any:
    """Another pipeline with the same components."""
    parts = {name: part for name, part in shapes.components.items() if name not in without}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, kind)(**{**parts, **more}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, *args: Any, **options: Any) -> Any:
    return pipe(*args, **{**BASE, "generator": torch.Generator().manual_seed(0), **options})


def branches(recorder: ea.EntropyRecorder) -> dict[int, set[str]]:
    return {step: set(rows) for step, rows in recorder.to_dataframe().groupby("step")["branch"]}


BOTH, ALONE = {"uncond", "cond"}, {"cond"}
