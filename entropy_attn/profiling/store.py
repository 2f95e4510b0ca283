"""A profile's folder: every finished run is in it at once, and a profile that was cut off goes on from there.

Rows are appended to the tables; then `plan.json` is replaced, with the lengths of the tables. What lies beyond those
lengths is of a run that was cut off, and is dropped when the profile goes on.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from entropy_attn.profiling.plan import ProfilePlan, Run, size_name
from entropy_attn.profiling.result import RunResult

LEDGER = "plan.json"
PICTURES, MAPS = "pictures", "maps"


class Store:
    """The folder of one plan.

    Raises `ValueError` where `resume` is asked for and the folder holds no profile, or that of another plan; and where
    it is not asked for and the folder holds one that was cut off.
    """

    def __init__(self, folder: Path, plan: ProfilePlan, resume: bool):
        self.folder, self.plan = folder, plan
        self.tables = {"entropy": folder / ("entropy.csv.gz" if plan.heads else "entropy.csv"),
                       "heads": folder / "heads.csv"}  # fmt: skip
        self.finished: list[dict[str, Any]] = []
        self._lengths = dict.fromkeys(self.tables, 0)
        before = _ledger(folder)
        if resume:
            self._take_up(before)
        else:
            self._refuse_to_overwrite(before)
            folder.mkdir(parents=True, exist_ok=True)
            for table in self.tables.values():
                table.write_bytes(b"")
            self._write_ledger()

    def __contains__(self, run: Run) -> bool:
        return any(self._is(entry, run) for entry in self.finished)

    def add(self, run: Run, result: RunResult) -> None:
        """Keep a finished run."""
        for name, table in (("entropy", result.entropy), ("heads", result.heads)):
            text = table.to_csv(index=False, header=self._lengths[name] == 0, lineterminator="\n").encode()
            if self.tables[name].suffix == ".gz":
                text = gzip.compress(text, mtime=0)  # members one after the other are one file
            with self.tables[name].open("ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            self._lengths[name] += len(text)
        files = []
        for index, picture in enumerate(result.pictures):
            files.append(f"{PICTURES}/{self._stem(run)}-prompt{index}.png")
            _save_picture(picture, self.folder / files[-1])
        maps = None
        if result.maps is not None:
            maps = f"{MAPS}/{self._stem(run)}.npz"
            (self.folder / MAPS).mkdir(exist_ok=True)
            np.savez_compressed(self.folder / maps, **result.maps)
        self.finished.append({**run.keys, "seconds": result.seconds, "pictures": files, "maps": maps})
        self._write_ledger()

    def read(self) -> tuple[dict[str, pd.DataFrame], list[RunResult]]:
        """The tables, and of every finished run what is not in them."""
        tables = {name: _read_table(path) for name, path in self.tables.items()}
        runs = []
        for entry in self.finished:
            pictures = []
            for name in entry["pictures"]:
                with Image.open(self.folder / name) as picture:
                    pictures.append(picture.copy())
            maps = None
            if entry["maps"] is not None:
                with np.load(self.folder / entry["maps"]) as file:
                    maps = dict(file)
            runs.append(RunResult(pd.DataFrame(), pd.DataFrame(), entry["seconds"], pictures, maps))
        return tables, runs

    def _take_up(self, before: dict[str, Any] | None) -> None:
        if before is None:
            raise ValueError(f"resume: {str(self.folder)!r} has no {LEDGER}, so no profile was begun there")
        was, now = before["plan"], json.loads(json.dumps(self.plan.described()))
        for name in dict.fromkeys([*now, *was]):
            if was.get(name) != now.get(name):
                raise ValueError(
                    f"resume: the profile in {str(self.folder)!r} has {name}={was.get(name)!r}, and this one "
                    f"{name}={now.get(name)!r}: give what it had, or another folder"
                )
        self.finished, self._lengths = before["finished"], before["lengths"]
        for name, table in self.tables.items():
            if not table.is_file() or table.stat().st_size < self._lengths[name]:
                raise ValueError(f"resume: {str(table)!r} is missing or shorter than {LEDGER} says: begin anew")
            with table.open("r+b") as file:
                file.truncate(self._lengths[name])

    def _refuse_to_overwrite(self, before: dict[str, Any] | None) -> None:
        if before is not None and before["finished"] and len(before["finished"]) < before["runs"]:
            raise ValueError(
                f"{str(self.folder)!r} holds a profile that was cut off, with {len(before['finished'])} of "
                f"{before['runs']} runs finished: resume it, give another folder, or remove {LEDGER}"
            )

    def _write_ledger(self) -> None:
        """In one step, so that it is never half written."""
        ledger = {"plan": self.plan.described(), "runs": len(list(self.plan.runs())), "lengths": self._lengths,
                  "finished": self.finished}  # fmt: skip
        new = self.folder / f"{LEDGER}.new"
        new.write_text(json.dumps(ledger, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.folder / LEDGER)

    def _stem(self, run: Run) -> str:
        """A name for the files of a run; policies whose names differ in odd characters alone are told apart."""
        slugs = [re.sub(r"[^\w.=-]+", "_", name)[:80] for name in self.plan.policies]
        place = list(self.plan.policies).index(run.policy)
        slug = slugs[place] if slugs.count(slugs[place]) == 1 else f"{slugs[place]}_{place}"
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
        raise ValueError(f"{str(path)!r} is no record of a profile: remove it, or give another folder") from error


def _read_table(path: Path) -> pd.DataFrame:
    """Names of policies and sizes stay text, whatever they look like."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    names = ["size", "policy", "layer", "kind", "branch"]
    return pd.read_csv(
        io.BytesIO(data), dtype=dict.fromkeys(names, str), keep_default_na=False, na_values={"scale": [""]}
    )


def _save_picture(picture: Any, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if not isinstance(picture, Image.Image):
        values = np.asarray(picture)
        picture = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8).squeeze())
    picture.save(path)


def unfinished(folder: Path) -> tuple[int, int] | None:
    """(finished runs, all runs) of the profile in a folder; None where there is none, or all are finished."""
    try:
        found = _ledger(folder)
    except ValueError:
        return None
    if found is None or len(found["finished"]) >= found["runs"]:
        return None
    return len(found["finished"]), found["runs"]
