"""Pictures of fixed captions under a guidance, marked by the exact checker: a row a picture, appended as they come."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import entropy_attn as ea
from benchmarks.guidance.arms import guidance_of
from benchmarks.shapes.evaluate import captions
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import Request

SPLITS = ("seen", "held-out")
REPORTED, CHOSEN_ON = 77, 78  # seeds of the captions that are reported, and of those that settings are chosen on
MOST_REPORTED = 300  # captions; none of them is among those that settings are chosen on
FIELDS = ("seed", "split", "caption", "arm", "alpha", "gamma", "presence", "count", "binding", "relation", "found")
BATCH = 20
STEPS, GUIDED, CFG = 25, 12, 4.0  # T-SAM's recipe guides 25 of 50 steps


@dataclass(frozen=True)
class Setting:
    """An arm with its strength. Numbers as they are written in the files."""

    arm: str
    alpha: str = ""
    gamma: str = ""

    def guidance(self, guided: int):
        alpha, gamma = (float(number) if number else None for number in (self.alpha, self.gamma))
        return guidance_of(self.arm, alpha, gamma, range(guided))


@dataclass(frozen=True)
class Caption:
    split: str
    index: int  # within its split
    request: Request

    def generator(self, seed: int) -> torch.Generator:
        """The same first latents in every arm."""
        return torch.Generator().manual_seed(1_000_000 * seed + 100_000 * SPLITS.index(self.split) + self.index)


def of_several_objects(split: str, total: int, seed: int, without: Iterable[Request] = ()) -> list[Request]:
    """The first requests of ``captions`` that name two kinds at least, where every method has something to tell apart.

    without: requests that must not be among them.
    """
    known, draw = {request.caption() for request in without}, total
    while True:
        drawn = captions(split, draw, seed)
        fit = [r for r in drawn if len(r.kinds) > 1 and r.caption() not in known]
        if len(fit) >= total:
            return fit[:total]
        draw *= 2


def reported_captions(total: int = MOST_REPORTED) -> list[Caption]:
    """``total`` captions, every second one touching a held-out pair or kind; fewer are the first of them.

    Raises:
        ValueError: more than ``MOST_REPORTED``.
    """
    if not 1 <= total <= MOST_REPORTED:
        raise ValueError(f"captions={total}: 1 to {MOST_REPORTED} are allowed; further ones may have chosen settings")
    return _interleaved({split: of_several_objects(split, MOST_REPORTED // 2, REPORTED) for split in SPLITS})[:total]


def selection_captions(total: int) -> list[Caption]:
    """Captions none of which can be reported."""
    known = [caption.request for caption in reported_captions()]
    half = -(-total // 2)
    return _interleaved({split: of_several_objects(split, half, CHOSEN_ON, known) for split in SPLITS})[:total]


def _interleaved(by_split: dict[str, list[Request]]) -> list[Caption]:
    pairs = zip(*([Caption(split, i, r) for i, r in enumerate(by_split[split])] for split in SPLITS), strict=True)
    return list(itertools.chain.from_iterable(pairs))


def chunks(items: list[Caption], size: int = BATCH) -> Iterator[list[Caption]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def trial(pipe: Any, setting: Setting, batch: list[Caption], seed: int, steps: int, guided: int) -> list[dict]:
    """One picture of every caption of the batch, as rows."""
    guidance = setting.guidance(guided)
    with nullcontext() if guidance is None else ea.guidance.attach(pipe, guidance):
        images = pipe(
            [caption.request.caption() for caption in batch], num_inference_steps=steps, guidance_scale=CFG,
            generator=[caption.generator(seed) for caption in batch],
        ).images  # fmt: skip
    rows = []
    for caption, image in zip(batch, images, strict=True):
        score = check(image, caption.request)
        rows.append(
            {"seed": seed, "split": caption.split, "caption": caption.index, "arm": setting.arm,
             "alpha": setting.alpha, "gamma": setting.gamma, "presence": int(score.presence), "count": int(score.count),
             "binding": int(score.binding), "relation": "" if score.relation is None else int(score.relation),
             "found": len(score.found)}
        )  # fmt: skip
    return [{name: str(value) for name, value in row.items()} for row in rows]


class Trials:
    """The rows of a file, and those still to come: what is in it already is not drawn again.

    The settings of the sampling are not in the rows: a file belongs to one number of steps.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        if path.exists():
            with path.open(newline="") as file:
                whole = [row for row in csv.DictReader(file) if None not in row.values()]  # not one cut off
            self.rows = {_key(row): row for row in whole}
        self._rewrite()

    def missing(self, setting: Setting, batch: list[Caption], seed: int) -> list[Caption]:
        name = (setting.arm, setting.alpha, setting.gamma)
        return [c for c in batch if (str(seed), c.split, str(c.index), *name) not in self.rows]

    def add(self, rows: list[dict[str, str]]) -> None:
        self.rows |= {_key(row): row for row in rows}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerows(rows)

    def of(self, setting: Setting) -> list[dict[str, str]]:
        return [r for r in self.rows.values() if (r["arm"], r["alpha"], r["gamma"]) == _name(setting)]

    def _rewrite(self) -> None:
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(self.rows.values())


def _name(setting: Setting) -> tuple[str, str, str]:
    return setting.arm, setting.alpha, setting.gamma


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("seed", "split", "caption", "arm", "alpha", "gamma"))
