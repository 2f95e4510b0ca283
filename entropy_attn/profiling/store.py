"""The folder of a profile: each run is in it as soon as it is finished, and an interrupted profile can be resumed.

plan.json        the plan
runs/NAME/       one finished run: its rows of each table, its images, its maps at the largest size, run.json
entropy.csv ...  the rows of all runs, in the order of the plan
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from entropy_attn.profiling.plan import ProfilePlan, Run, size_name
from entropy_attn.profiling.result import RunResult
from entropy_attn.runs.folder import PLAN, RUN, RUNS, RunFolder, finished_runs, slugs
from entropy_attn.runs.processes import ALONE, Processes

ENTROPY, BY_HEAD, HEADS = "entropy.csv", "entropy.csv.gz", "heads.csv"
RESPONSE = "response.csv.gz"  # rows of every head, as of entropy.csv.gz
MAPS, STEP_MAPS = "maps.npz", "steps.npz"
REPLACED = ".runs.old"
WHAT = "profile"

OnRun = Callable[[Run, "float | None", int, int], None]


class Store:
    """The folder of one plan; `response` says whether its runs measure the regime of layers.

    With `resume`, the runs of the same plan that are there are kept. Without it, a finished profile is replaced.

    Raises:
        ValueError: with `resume`, the folder has a profile of another plan; without it, the folder has a profile that
            was interrupted.
    """

    def __init__(
        self,
        folder: Path,
        plan: ProfilePlan,
        resume: bool,
        response: bool = False,
        processes: Processes = ALONE,
    ):
        self.folder, self.plan = folder, plan
        self.tables = {"entropy": folder / (BY_HEAD if plan.heads else ENTROPY), "heads": folder / HEADS}
        if response:
            self.tables["response"] = folder / RESPONSE
        self.runs = _named(plan)
        if not resume:
            processes.from_first(self._start_again)
        self._runs = RunFolder(folder, plan.described(), list(self.runs), WHAT, processes)

    def complete(self, make: Callable[[Run], RunResult], on_run: OnRun | None = None) -> None:
        """Make the runs that are missing, as `RunFolder.complete` does; the largest images are the dearest."""

        def area(name: str) -> int:
            height, width = self.runs[name].size
            return height * width

        self._runs.complete(
            lambda name, folder: self._write(self.runs[name], make(self.runs[name]), folder),
            on_run and (lambda name, *rest: on_run(self.runs[name], *rest)),
            area,
        )

    def write_tables(self) -> None:
        """Write the rows of all runs, each table in one step."""
        for path in self.tables.values():
            text = self._joined(path.name)
            new = path.with_name(f".{path.name}.new")
            new.write_bytes(_packed(path, text))
            os.replace(new, path)

    def read(self) -> tuple[dict[str, pd.DataFrame], list[RunResult]]:
        """The tables, and for each run, in the order of the plan, what is not in them."""
        tables = {name: _parsed(self._joined(path.name)) for name, path in self.tables.items()}
        return tables, [self._read(name) for name in self.runs]

    def _write(self, run: Run, result: RunResult, folder: Path) -> dict[str, Any]:
        for name, path in self.tables.items():
            table = getattr(result, name)
            if not table.empty:
                text = table.to_csv(index=False, lineterminator="\n").encode()
                (folder / path.name).write_bytes(_packed(path, text))
        for index, image in enumerate(result.pictures):
            _save_image(image, folder / _picture(index))
        for name, maps in ((MAPS, result.maps), (STEP_MAPS, result.step_maps)):
            if maps is not None:
                arrays: dict[str, Any] = dict(maps)
                np.savez_compressed(folder / name, **arrays)
        return {**run.keys, "seconds": result.seconds, "pictures": len(result.pictures)}

    def _read(self, name: str) -> RunResult:
        folder, facts = self._runs.path(name), self._runs.read(name)
        images = []
        for index in range(facts["pictures"]):
            with Image.open(folder / _picture(index)) as image:
                images.append(image.copy())
        maps = read_maps(folder / MAPS) if (folder / MAPS).is_file() else None
        nothing = pd.DataFrame()  # the tables hold all runs
        return RunResult(nothing, nothing, nothing, facts["seconds"], images, maps)

    def _joined(self, table: str) -> bytes:
        """The rows of all runs, under one heading."""
        parts = [self._runs.path(name) / table for name in self.runs]
        texts = [_unpacked(part) for part in parts if part.is_file()]
        return b"".join([*texts[:1], *(text.partition(b"\n")[2] for text in texts[1:])])

    def _start_again(self) -> None:
        counts = finished(self.folder)
        if counts is None:
            return
        if 0 < counts[0] < counts[1]:
            raise ValueError(
                f"out: {str(self.folder)!r} has an interrupted profile, with {counts[0]} of {counts[1]} runs finished: "
                "resume it, use another folder, or remove this one"
            )
        # The runs go first and at once, the plan last: what a kill leaves is a profile that has not begun
        old = self.folder / REPLACED
        _remove(old)
        if (self.folder / RUNS).is_dir():
            os.rename(self.folder / RUNS, old)
        _remove(old)
        for name in (ENTROPY, BY_HEAD, HEADS, RESPONSE, PLAN):
            (self.folder / name).unlink(missing_ok=True)


def _named(plan: ProfilePlan) -> dict[str, Run]:
    """{name of its folder: run}, in the order of the plan."""
    names = slugs(plan.policies)
    return {f"{size_name(run.size)}-{names[run.policy]}-seed{run.seed}": run for run in plan.runs()}


def read_table(path: Path) -> pd.DataFrame:
    """The table of a file, `.csv` or `.csv.gz`."""
    return _parsed(_unpacked(path))


def read_maps(path: Path) -> dict[str, np.ndarray]:
    """{layer: map} of a file of maps."""
    with np.load(path) as file:
        return dict(file)


def read_step_maps(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """{policy: {layer: array (steps, rows, columns)}} of a finished profile."""
    found = {}
    for path in sorted((folder / RUNS).glob(f"[!.]*/{STEP_MAPS}")):
        facts: Mapping[str, Any] = json.loads((path.parent / RUN).read_text(encoding="utf-8"))
        found[facts["policy"]] = read_maps(path)
    return found


def finished(folder: Path) -> tuple[int, int] | None:
    """(finished runs, all runs) of the profile in a folder; None if there is none."""
    return finished_runs(folder, WHAT)


def _parsed(text: bytes) -> pd.DataFrame:
    """Names of policies and sizes stay text, even if they look like numbers."""
    if not text:
        return pd.DataFrame()
    names = ["size", "policy", "layer", "kind", "branch"]
    return pd.read_csv(
        io.BytesIO(text),
        dtype={**dict.fromkeys(names, str), "train_tokens": "Int64"},
        keep_default_na=False,
        na_values={"scale": [""], "train_tokens": [""]},
    )


def _packed(path: Path, text: bytes) -> bytes:
    return gzip.compress(text, mtime=0) if path.suffix == ".gz" else text


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def _picture(index: int) -> str:
    return f"prompt{index}.png"


def _save_image(image: Any, path: Path) -> None:
    if not isinstance(image, Image.Image):
        values = np.asarray(image)
        image = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8).squeeze())
    image.save(path)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
