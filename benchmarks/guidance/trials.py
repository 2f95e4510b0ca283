"""Images of fixed captions under a guidance, scored by the exact checker: a row for each, appended as they are made."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import entropy_attn as ea
from benchmarks.common import append_rows, read_rows, write_rows
from benchmarks.guidance.arms import guidance_of
from entropy_attn.evaluation.shapes_captions import shapes_requests
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import Request

SPLITS = ("seen", "held-out")
REPORTED, CHOSEN_ON = 77, 78  # seeds of the captions for the report, and for choosing settings
MOST_REPORTED = 300  # captions; settings are chosen on others
FIELDS = ("seed", "split", "caption", "arm", "alpha", "gamma", "presence", "count", "binding", "relation", "found")
BATCH = 20
STEPS, GUIDED, CFG = 25, 12, 4.0  # T-SAM's recipe guides 25 of 50 steps


@dataclass(frozen=True)
class Setting:
    """An arm and its strength; numbers are text, as in the files."""

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
        """The starting noise: the same in every arm."""
        return torch.Generator().manual_seed(1_000_000 * seed + 100_000 * SPLITS.index(self.split) + self.index)


def of_several_objects(split: str, total: int, seed: int, without: Iterable[Request] = ()) -> list[Request]:
    """The first requests of `shapes_requests` with at least two kinds of objects, which a guidance can mix up.

    Args:
        split: "seen" or "held-out".
        total: how many.
        seed: of the captions.
        without: requests to leave out.
    """
    known = set(without)
    return shapes_requests(total, split, seed, lambda request: len(request.kinds) > 1 and request not in known)


def reported_captions(total: int = MOST_REPORTED) -> list[Caption]:
    """The first `total` captions for the report; every second one has a held-out pair or kind.

    Raises:
        ValueError: more than `MOST_REPORTED`.
    """
    if not 1 <= total <= MOST_REPORTED:
        raise ValueError(
            f"captions: expected 1 to {MOST_REPORTED}, got {total}; settings may be chosen on further ones"
        )
    return _interleaved({split: of_several_objects(split, MOST_REPORTED // 2, REPORTED) for split in SPLITS})[:total]


def selection_captions(total: int) -> list[Caption]:
    """Captions that are never reported."""
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
    """Rows of the batch: an image for each caption, scored."""
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
    """A file of rows, and which ones are missing in it; existing ones are not made again.

    The rows do not have the settings of the sampling: a file belongs to one number of steps.
    """

    def __init__(self, path: Path):
        self.path = path
        complete = [row for row in read_rows(path) if None not in row.values()]  # the last one may be cut off
        self.rows: dict[tuple[str, ...], dict[str, str]] = {_key(row): row for row in complete}
        write_rows(path, self.rows.values(), FIELDS)

    def missing(self, setting: Setting, batch: list[Caption], seed: int) -> list[Caption]:
        name = (setting.arm, setting.alpha, setting.gamma)
        return [c for c in batch if (str(seed), c.split, str(c.index), *name) not in self.rows]

    def add(self, rows: list[dict[str, str]]) -> None:
        self.rows |= {_key(row): row for row in rows}
        append_rows(self.path, rows, FIELDS)

    def of(self, setting: Setting) -> list[dict[str, str]]:
        return [r for r in self.rows.values() if (r["arm"], r["alpha"], r["gamma"]) == _name(setting)]


def _name(setting: Setting) -> tuple[str, str, str]:
    return setting.arm, setting.alpha, setting.gamma


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("seed", "split", "caption", "arm", "alpha", "gamma"))
