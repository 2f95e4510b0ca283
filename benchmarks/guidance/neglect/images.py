"""Images of the neglecting model under an arm, scored by the exact checker: a row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

import entropy_attn as ea
from benchmarks.common import append_rows, read_rows, write_rows
from benchmarks.guidance.arms import guidance_of
from benchmarks.guidance.neglect.captions import fixed_captions
from benchmarks.guidance.neglect.model import cut_at_caption
from entropy_attn.evaluation.oracle_map import OracleMap
from entropy_attn.guidance import Guidance, RandomDirection
from entropy_attn.integrations.diffusers.private import dtype_argument
from entropy_attn.shapes.checker import check

OFF, OTHER_SEED, ORACLE, RANDOM = "off", "another seed", "oracle map", "random: "
REPORTED, CHOSEN_ON = 91, 92  # seeds of the captions for the report, and for choosing strengths
STEPS, CFG, BATCH = 10, 4.0, 20
MAP_SIZE = (16, 16)
SEED_OFFSET = 1000  # of the control "another seed"
FIELDS = ("captions", "objects", "caption", "seed", "arm", "alpha", "guided", "presence", "count", "binding", "found")
Row = dict[str, str]


@dataclass(frozen=True)
class Case:
    """A caption and its starting noise, which all arms have in common."""

    captions: int  # REPORTED or CHOSEN_ON
    objects: int
    caption: int
    seed: int

    def generator(self, offset: int) -> torch.Generator:
        noise = (self.captions * 10 + self.objects) * 10_000 + self.seed + offset
        return torch.Generator().manual_seed(noise * 10_000 + self.caption)

    @property
    def key(self) -> tuple[str, ...]:
        return str(self.captions), str(self.objects), str(self.caption), str(self.seed)


@dataclass(frozen=True)
class Arm:
    """A guidance, its strength and its first and last guided step ("0-6"), as text; or a control without them."""

    name: str
    alpha: str = ""
    guided: str = ""

    def guidance(self, gamma: float = 4.0) -> Guidance | None:
        """None without guidance, for `OFF` and `OTHER_SEED`."""
        if self.name in (OFF, OTHER_SEED):
            return None
        alpha, (first, last) = float(self.alpha), map(int, self.guided.split("-"))
        steps = range(first, last + 1)
        if self.name == ORACLE:
            return OracleMap(alpha=alpha, steps=steps, map_size=MAP_SIZE)
        method = guidance_of(self.name.removeprefix(RANDOM), alpha, gamma, steps)
        assert method is not None
        method = replace(method, map_size=MAP_SIZE)
        return RandomDirection(guidance=method) if self.name.startswith(RANDOM) else method

    @property
    def key(self) -> tuple[str, ...]:
        return self.name, self.alpha, self.guided


def load(folder: Path) -> Any:
    """The pipeline that `benchmarks.guidance.neglect.train --export` wrote."""
    pipe = DiffusionPipeline.from_pretrained(folder, **dtype_argument(torch.float32))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cases(captions: int, objects: int, total: int, seeds: Iterable[int]) -> list[Case]:
    return [Case(captions, objects, index, seed) for seed in seeds for index in range(total)]


def batches(items: Sequence[Case], size: int = BATCH) -> Iterator[list[Case]]:
    for at in range(0, len(items), size):
        yield list(items[at : at + size])


def make(pipe: Any, arm: Arm, batch: list[Case], record: Sequence[Any] = (), steps: int = STEPS) -> list[Row]:
    """Rows of a batch: one image for each case, all of as many objects.

    Args:
        pipe: from `load`.
        arm: the guidance or control.
        batch: the cases.
        record: recorders for `ea.apply`; none for a guided arm.
        steps: denoising steps.
    """
    (objects,) = {case.objects for case in batch}
    cut_at_caption(pipe, objects)
    last = 1 + max(case.caption for case in batch)
    requests = [fixed_captions(last, objects, case.captions)[case.caption] for case in batch]
    offset = SEED_OFFSET if arm.name == OTHER_SEED else 0
    guidance = arm.guidance()
    with (
        nullcontext() if guidance is None else ea.guidance.attach(pipe, guidance),
        ea.apply(pipe, scale=None, record=list(record)) if record else nullcontext(),
    ):
        images = pipe([request.caption() for request in requests], num_inference_steps=steps, guidance_scale=CFG,
                      generator=[case.generator(offset) for case in batch]).images  # fmt: skip
    rows = []
    for case, request, image in zip(batch, requests, images, strict=True):
        score = check(image, request)
        values = (*case.key, *arm.key, *(int(getattr(score, n)) for n in ("presence", "count", "binding")))
        rows.append({n: str(v) for n, v in zip(FIELDS, (*values, len(score.found)), strict=True)})
    return rows


class Images:
    """A file of rows; what is in it is not made again. It belongs to one model and number of steps."""

    def __init__(self, path: Path):
        self.path = path
        complete = [row for row in read_rows(path) if None not in row.values()]  # the last one may be cut off
        self.rows: dict[tuple[str, ...], Row] = {_key(row): row for row in complete}
        write_rows(path, self.rows.values(), FIELDS)

    def add(self, rows: list[Row]) -> None:
        self.rows |= {_key(row): row for row in rows}
        append_rows(self.path, rows, FIELDS)

    def presence(self, pipe: Any, arm: Arm, items: Sequence[Case], on_batch: Callable[[int], Any]) -> dict[Case, bool]:
        """Whether each case has every object under this arm; makes the images that are missing."""
        missing = [case for case in items if (*case.key, *arm.key) not in self.rows]
        on_batch(len(items) - len(missing))
        for batch in batches(missing):
            self.add(make(pipe, arm, batch))
            on_batch(len(batch))
        return {case: self.rows[(*case.key, *arm.key)]["presence"] == "1" for case in items}


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in FIELDS[:7])
