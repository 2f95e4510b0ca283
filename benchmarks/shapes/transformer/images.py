"""The scored images of an evaluation: a row of images.csv for each, kept, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import entropy_attn as ea
from benchmarks.common import append_rows, read_rows
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import Request

FIELDS = ("split", "size", "policy", "caption", "seed", "asked", "found", "presence", "count", "binding")
BATCH = 20
LONGEST = 32  # tokens; the pipeline of Lumina 2 pads captions to 256, which changes nothing and takes half of the time

Size = tuple[int, int]


def size_name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


class Sampler:
    """Images of captions at fixed settings. The noise of a caption is that of its number, under every policy."""

    def __init__(self, model: Path, steps: int, guidance_scale: float):
        from diffusers import DiffusionPipeline

        from entropy_attn.integrations.diffusers.private import dtype_argument

        self.pipe = DiffusionPipeline.from_pretrained(model, **dtype_argument(torch.float32))
        self.pipe.set_progress_bar_config(disable=True)
        self.options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        if "max_sequence_length" in inspect.signature(type(self.pipe).__call__).parameters:
            self.options["max_sequence_length"] = LONGEST

    def __call__(self, captions: list[str], seeds: list[int], size: Size, policy: Any, **options: Any) -> list[Any]:
        with ea.apply(self.pipe, scale=policy):
            return self.pipe(
                captions, height=size[0], width=size[1],
                generator=[torch.Generator().manual_seed(seed) for seed in seeds], **{**self.options, **options},
            ).images  # fmt: skip


class Images:
    """The rows of images.csv in a folder; missing ones are made.

    Captions are generated in fixed batches, whatever is there already: a resumed run writes the rows of one that was
    not stopped.

    Raises:
        ValueError: the folder holds images of another model, or of other settings.
    """

    def __init__(self, sample: Sampler, out: Path, settings: dict[str, Any]):
        self.sample, self.path = sample, out / "images.csv"
        _claim(out, settings)
        _drop_unfinished_line(self.path)
        self.rows: dict[tuple, dict] = {_key(row): row for row in read_rows(self.path)}

    def __call__(
        self, split: str, size: Size, name: str, policy: Any, wanted: list[Request], advance: Callable[[int], None]
    ) -> list[dict]:
        """A row for each request, in their order."""
        for at in range(0, len(wanted), BATCH):
            batch = wanted[at : at + BATCH]
            keys = [(split, size_name(size), name, request.caption()) for request in batch]
            if not all(key in self.rows for key in keys):
                seeds = list(range(at, at + len(batch)))
                images = self.sample([request.caption() for request in batch], seeds, size, policy)
                made = [_row(*each) for each in zip(keys, seeds, batch, images, strict=True)]
                new = [row for row in made if _key(row) not in self.rows]
                append_rows(self.path, new, FIELDS)
                self.rows |= {_key(row): row for row in new}
            advance(len(batch))
        return [self.rows[split, size_name(size), name, request.caption()] for request in wanted]


def digest(model: Path) -> str:
    """SHA-256 of the denoiser's weights."""
    files = sorted(file for part in ("transformer", "unet") for file in (model / part).glob("*.safetensors"))
    if not files:
        raise ValueError(f"model: expected a diffusers folder with the weights of a denoiser, got {str(model)!r}")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _row(key: tuple, seed: int, request: Request, image: Any) -> dict[str, Any]:
    score = check(image, request)
    return dict(zip(FIELDS, (*key, seed, request.total, len(score.found), int(score.presence), int(score.count),
                             int(score.binding)), strict=True))  # fmt: skip


def _key(row: dict) -> tuple:
    return row["split"], row["size"], row["policy"], row["caption"]


def _claim(out: Path, settings: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise ValueError(f"--out {out}: expected the settings of its images, {path.read_text()}, got "
                         f"{json.dumps(settings)}")  # fmt: skip
    path.write_text(json.dumps(settings))


def _drop_unfinished_line(path: Path) -> None:
    """A run that was killed while it wrote leaves a part of a line, which would be read as a row."""
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])
