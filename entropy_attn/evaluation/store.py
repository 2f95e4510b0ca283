"""A folder of finished runs: each run is a folder that appears by rename, so it is there completely or not at all.

    plan.json       what the runs have in common, and its hash; another plan is refused
    runs/NAME/      one finished run, with run.json; whatever else its maker wrote

The folder is all the state there is: a process that finds a run does not make it again, which is how an evaluation is
resumed after a kill, and how several processes that share a file system divide one between them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_attn.validation import expected

PLAN, RUNS, RUN = "plan.json", "runs", "run.json"
_NAME = re.compile(r"[\w.=+-]{1,150}")

Make = Callable[[str, Path], "Mapping[str, Any] | None"]  # (name of a run, empty folder to write into) -> facts
OnRun = Callable[[str, "float | None", int, int], None]  # (name, seconds or None if it was there, number, count)


class RunFolder:
    """The finished runs of one plan.

    Args:
        folder: where they are kept; created if it is missing.
        plan: what the runs have in common, as values that JSON can hold.
        runs: names of all runs, in the order in which they are made and read.
        what: what the plan is of, for messages, such as "evaluation".

    Raises:
        ValueError: the folder has runs of another plan, or a name cannot be that of a folder.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], runs: Sequence[str], what: str = "evaluation"):
        bad = next((name for name in runs if not _NAME.fullmatch(name)), None)
        if bad is not None:
            raise ValueError(expected("runs", "names of letters, digits and .=+-_, at most 150", bad))
        if len(set(runs)) < len(runs):
            raise ValueError(expected("runs", "different names", list(runs)))
        self.folder, self.runs, self.what = folder, list(runs), what
        self.plan = json.loads(json.dumps(plan))
        self.hash = plan_hash(self.plan)
        self._claim()

    def __contains__(self, name: str) -> bool:
        return (self.path(name) / RUN).is_file()

    def path(self, name: str) -> Path:
        """The folder of a finished run."""
        return self.folder / RUNS / name

    def missing(self) -> list[str]:
        """Names of the runs that are not finished."""
        return [name for name in self.runs if name not in self]

    def add(self, name: str, make: Make) -> float:
        """Make a run and put it into the folder; returns its seconds.

        Nothing of a run that fails or is interrupted is left. If another process has finished the same run meanwhile,
        that one stays.
        """
        if name not in self.runs:
            raise ValueError(expected("name", "a run of the plan", name))
        # The name of the process keeps those apart that share the folder
        made = self.folder / RUNS / f".{name}.{os.getpid()}"
        _remove(made)
        made.mkdir(parents=True)
        try:
            start = time.perf_counter()
            facts = make(name, made) or {}
            seconds = time.perf_counter() - start
            record = {"run": name, "plan": self.hash, "seconds": round(seconds, 3), **facts}
            (made / RUN).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            _to_disk(made)
            try:
                os.rename(made, self.path(name))
            except OSError:
                if name not in self:
                    raise
        finally:
            _remove(made)
        return seconds

    def read(self, name: str) -> dict[str, Any]:
        """The facts of a finished run: `run`, `plan`, `seconds`, and what its maker returned.

        Raises:
            ValueError: the run was made for another plan, for example because its folder was copied here.
        """
        found = json.loads((self.path(name) / RUN).read_text(encoding="utf-8"))
        if found.get("plan") != self.hash:
            raise ValueError(f"{str(self.path(name))!r}: expected a run of plan {self.hash}, got {found.get('plan')}")
        return found

    def complete(self, make: Make, on_run: OnRun | None = None, only: Iterable[str] | None = None) -> None:
        """Make every run that is missing, in order.

        Args:
            make: makes a run: writes its files into the folder it is given, and returns further facts for run.json.
            on_run: called after each run, and for each run that was there; the numbers count from 1.
            only: names of the runs that this process makes; None is all.
        """
        chosen = self.runs if only is None else [name for name in self.runs if name in set(only)]
        for number, name in enumerate(chosen, start=1):
            seconds = None if name in self else self.add(name, make)
            if on_run is not None:
                on_run(name, seconds, number, len(chosen))
        if not self.missing():
            for left in (self.folder / RUNS).glob(".*"):  # by processes that were killed
                _remove(left)

    def _claim(self) -> None:
        (self.folder / RUNS).mkdir(parents=True, exist_ok=True)
        path = self.folder / PLAN
        if not path.exists():
            # The whole file appears at once; of two processes with the same plan it does not matter which one is last
            new = self.folder / f".{PLAN}.{os.getpid()}"
            ledger = {"hash": self.hash, "runs": len(self.runs), "plan": self.plan}
            new.write_text(json.dumps(ledger, indent=1) + "\n", encoding="utf-8")
            os.replace(new, path)
        before = _ledger(path, self.what)["plan"]
        for name in dict.fromkeys([*self.plan, *before]):
            if before.get(name) != self.plan.get(name):
                raise ValueError(
                    f"out: expected {name}={_short(before.get(name))}, as in the {self.what} in {str(self.folder)!r}, "
                    f"got {_short(self.plan.get(name))}: use the old value, or another folder"
                )


def plan_hash(plan: Mapping[str, Any]) -> str:
    """The same for equal plans in every process."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]


def finished_runs(folder: Path) -> tuple[int, int] | None:
    """(finished runs, all runs) of a folder of runs; None if it is none."""
    try:
        count = int(_ledger(folder / PLAN, "evaluation")["runs"])
    except (OSError, ValueError):
        return None
    return sum((path / RUN).is_file() for path in (folder / RUNS).glob("[!.]*")), count


def _ledger(path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("plan", "runs", "hash")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not the plan of an {what}: remove it, or use another folder") from error


def _short(value: object, most: int = 300) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _to_disk(folder: Path) -> None:
    """A rename that survives a power failure must not point to files that did not."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
