"""The folder of a profile: each run is in it as soon as it is finished, and an interrupted profile can be resumed.

Rows are appended to the tables; then `plan.json` is replaced, with the new lengths of the tables. Data beyond these
lengths belongs to a run that was interrupted, and is dropped when the profile is resumed.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from entropy_attn.profiling.plan import ProfilePlan, Run, size_name
from entropy_attn.profiling.result import RunResult

LEDGER = "plan.json"
RESPONSE = "response.csv.gz"  # rows of every head, as of entropy.csv.gz
PICTURES, MAPS = "pictures", "maps"


class Store:
    """The folder of one plan; `response` says whether its runs measure the regime of layers.

    Raises:
        ValueError: with `resume`, the folder has no profile or one of another plan; without it, the folder has a
            profile that was interrupted.
    """

    def __init__(self, folder: Path, plan: ProfilePlan, resume: bool, response: bool = False):
        self.folder, self.plan = folder, plan
        self.tables = {"entropy": folder / ("entropy.csv.gz" if plan.heads else "entropy.csv"),
                       "heads": folder / "heads.csv"}  # fmt: skip
        if response:
            self.tables["response"] = folder / RESPONSE
        self.finished: list[dict[str, Any]] = []
        self._lengths = dict.fromkeys(self.tables, 0)
        before = _ledger(folder)
        if resume:
            self._resume(before)
        else:
            self._refuse_to_overwrite(before)
            folder.mkdir(parents=True, exist_ok=True)
            for table in self.tables.values():
                table.write_bytes(b"")
            self._write_ledger()

    def __contains__(self, run: Run) -> bool:
        return any(self._is(entry, run) for entry in self.finished)

    def add(self, run: Run, result: RunResult) -> None:
        """Write a finished run."""
        for name in self.tables:
            table = getattr(result, name)
            if table.empty:
                continue
            text = table.to_csv(index=False, header=self._lengths[name] == 0, lineterminator="\n").encode()
            if self.tables[name].suffix == ".gz":
                text = gzip.compress(text, mtime=0)  # concatenated gzip members are one file
            with self.tables[name].open("ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            self._lengths[name] += len(text)
        files = []
        for index, image in enumerate(result.pictures):
            files.append(f"{PICTURES}/{self._stem(run)}-prompt{index}.png")
            _save_image(image, self.folder / files[-1])
        maps = self._save_maps(f"{self._stem(run)}.npz", result.maps)
        step_maps = self._save_maps(f"{self._stem(run)}-steps.npz", result.step_maps)
        entry = {**run.keys, "seconds": result.seconds, "pictures": files, "maps": maps, "step_maps": step_maps}
        self.finished.append(entry)
        self._write_ledger()

    def _save_maps(self, name: str, maps: Mapping[str, np.ndarray] | None) -> str | None:
        if maps is None:
            return None
        (self.folder / MAPS).mkdir(exist_ok=True)
        arrays: dict[str, Any] = dict(maps)
        np.savez_compressed(self.folder / MAPS / name, **arrays)
        return f"{MAPS}/{name}"

    def read(self) -> tuple[dict[str, pd.DataFrame], list[RunResult]]:
        """The tables, and for each finished run what is not in them."""
        tables = {name: read_table(path) for name, path in self.tables.items()}
        runs = []
        for entry in self.finished:
            images = []
            for name in entry["pictures"]:
                with Image.open(self.folder / name) as image:
                    images.append(image.copy())
            maps = None
            if entry["maps"] is not None:
                with np.load(self.folder / entry["maps"]) as file:
                    maps = dict(file)
            nothing = pd.DataFrame()  # the tables hold all runs
            runs.append(RunResult(nothing, nothing, nothing, entry["seconds"], images, maps))
        return tables, runs

    def _resume(self, before: dict[str, Any] | None) -> None:
        if before is None:
            raise ValueError(f"resume: expected a profile in {str(self.folder)!r}, but it has no {LEDGER}")
        was, now = before["plan"], json.loads(json.dumps(self.plan.described()))
        for name in dict.fromkeys([*now, *was]):
            if was.get(name) != now.get(name):
                raise ValueError(
                    f"resume: expected {name}={was.get(name)!r}, as in the profile in {str(self.folder)!r}, got "
                    f"{now.get(name)!r}: use the old value, or another folder"
                )
        self.finished, self._lengths = before["finished"], before["lengths"]
        for name, table in self.tables.items():
            if not table.is_file() or table.stat().st_size < self._lengths[name]:
                raise ValueError(f"resume: {str(table)!r} is missing, or shorter than {LEDGER} says: start again")
            with table.open("r+b") as file:
                file.truncate(self._lengths[name])

    def _refuse_to_overwrite(self, before: dict[str, Any] | None) -> None:
        if before is not None and before["finished"] and len(before["finished"]) < before["runs"]:
            raise ValueError(
                f"out: {str(self.folder)!r} has an interrupted profile, with {len(before['finished'])} of "
                f"{before['runs']} runs finished: resume it, use another folder, or remove {LEDGER}"
            )

    def _write_ledger(self) -> None:
        """Replace the file in one step, so that it is never half written."""
        ledger = {"plan": self.plan.described(), "runs": len(list(self.plan.runs())), "lengths": self._lengths,
                  "finished": self.finished}  # fmt: skip
        new = self.folder / f"{LEDGER}.new"
        new.write_text(json.dumps(ledger, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.folder / LEDGER)

    def _stem(self, run: Run) -> str:
        """A name for the files of a run, unique even if the names of two policies differ only in special characters."""
        slugs = [re.sub(r"[^\w.=-]+", "_", name)[:80] for name in self.plan.policies]
        index = list(self.plan.policies).index(run.policy)
        slug = slugs[index] if slugs.count(slugs[index]) == 1 else f"{slugs[index]}_{index}"
        return f"{size_name(run.size)}-{slug}-seed{run.seed}"

    @staticmethod
    def _is(entry: dict[str, Any], run: Run) -> bool:
        return all(entry[name] == value for name, value in run.keys.items())


def _ledger(folder: Path) -> dict[str, Any] | None:
    path = folder / LEDGER
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("plan", "runs", "lengths", "finished")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not the plan of a profile: remove it, or use another folder") from error


def read_table(path: Path) -> pd.DataFrame:
    """Names of policies and sizes stay text, even if they look like numbers."""
    data = path.read_bytes()
    if not data:
        return pd.DataFrame()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    names = ["size", "policy", "layer", "kind", "branch"]
    return pd.read_csv(
        io.BytesIO(data),
        dtype={**dict.fromkeys(names, str), "train_tokens": "Int64"},
        keep_default_na=False,
        na_values={"scale": [""], "train_tokens": [""]},
    )


def _save_image(image: Any, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if not isinstance(image, Image.Image):
        values = np.asarray(image)
        image = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8).squeeze())
    image.save(path)


def unfinished(folder: Path) -> tuple[int, int] | None:
    """(finished runs, all runs) of the profile in a folder; None if there is none, or it is finished."""
    try:
        found = _ledger(folder)
    except ValueError:
        return None
    if found is None or len(found["finished"]) >= found["runs"]:
        return None
    return len(found["finished"]), found["runs"]
