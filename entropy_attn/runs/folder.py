"""A folder of finished runs: each run is a folder that appears by rename, so it is there completely or not at all.

    plan.json       what the runs have in common, and its hash; another plan is refused
    runs/NAME/      one finished run, with run.json; whatever else its maker wrote

The folder is all the state there is. A run that is there is not made again, which is how work is resumed after a kill,
by any number of processes; and what several processes make is merged by being in the folder, which they share.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_attn.runs.processes import ALONE, Processes
from entropy_attn.validation import expected

PLAN, RUNS, RUN = "plan.json", "runs", "run.json"
_NAME = re.compile(r"[\w.=+-]{1,150}")

Make = Callable[[str, Path], "Mapping[str, Any] | None"]  # (name of a run, empty folder to write into) -> facts
OnRun = Callable[[str, "float | None", int, int], None]  # (name, seconds or None if it was there, number, count)
APPEARS = 60.0  # seconds until a file of another node must be seen: NFS caches folders for up to 60


class RunFolder:
    """The finished runs of one plan.

    Args:
        folder: where they are kept; created if it is missing.
        plan: what the runs have in common, as values that JSON can hold.
        runs: names of all runs, in the order in which they are made and read.
        what: what the plan is of, for messages, such as "evaluation".
        processes: those that make the runs; each of them makes the same call, with the same folder.

    Raises:
        ValueError: the folder has runs of another plan, the processes do not share it, or a name cannot be that of a
            folder.
        OtherProcessFailed: one of these in another process.
    """

    def __init__(
        self,
        folder: Path,
        plan: Mapping[str, Any],
        runs: Sequence[str],
        what: str = "evaluation",
        processes: Processes = ALONE,
    ):
        bad = next((name for name in runs if not _NAME.fullmatch(name)), None)
        if bad is not None:
            raise ValueError(expected("runs", "names of letters, digits and .=+-_, at most 150", bad))
        if len(set(runs)) < len(runs):
            raise ValueError(expected("runs", "different names", list(runs)))
        self.folder, self.runs, self.what, self.processes = folder, list(runs), what, processes
        self.plan = json.loads(json.dumps(plan))
        self.hash = plan_hash(self.plan)
        processes.from_first(self._claim)
        with processes.together():
            self._require_shared(lambda: (folder / PLAN).exists(), PLAN)
            self._compare()

    def __contains__(self, name: str) -> bool:
        return self.path(name).is_dir()

    def path(self, name: str) -> Path:
        """The folder of a finished run."""
        return self.folder / RUNS / name

    def finished(self) -> list[str]:
        """Names of the runs that are finished, in the order of the plan."""
        there = set(os.listdir(self.folder / RUNS))
        return [name for name in self.runs if name in there]

    def missing(self) -> list[str]:
        """Names of the runs that are not finished."""
        there = set(self.finished())
        return [name for name in self.runs if name not in there]

    def add(self, name: str, make: Make) -> float:
        """Make a run and put it into the folder; returns its seconds.

        Nothing of a run that fails or is interrupted is left. If another process has finished the same run meanwhile,
        that one stays.
        """
        if name not in self.runs:
            raise ValueError(expected("name", "a run of the plan", name))
        # The names of host and process keep those apart that share the folder
        made = self.folder / RUNS / f".{name}.{socket.gethostname()}.{os.getpid()}"
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

    def complete(self, make: Make, on_run: OnRun | None = None, cost: Callable[[str], Any] | None = None) -> None:
        """Make every run that is missing: this process its share of them, and return when all processes have theirs.

        Args:
            make: makes a run: writes its files into the folder it is given, and returns further facts for run.json.
            on_run: called for each run that was there, and after each run that this process has made; the third
                argument is the number of finished runs.
            cost: what a run costs, as a value that can be compared; the dearest are made first. None is the order of
                the plan, which is also that of a process alone.

        Raises:
            OtherProcessFailed: a run failed in another process, or another process has ended.
        """
        number, count = 0, len(self.runs)
        there = self.processes.from_first(self.finished)  # the same for all, though some may have begun to add runs
        left = [name for name in self.runs if name not in set(there)]
        with self.processes.together():
            for number, name in enumerate(there, start=1):
                if on_run is not None:
                    on_run(name, None, number, count)
            for name in self.processes.share(left, cost):
                seconds = self.add(name, make)
                number = number + 1 if self.processes.count == 1 else len(self.finished())
                if on_run is not None:
                    on_run(name, seconds, number, count)
        with self.processes.together():
            self._require_shared(lambda: not self.missing(), "the runs")
        self.processes.from_first(self._remove_rest)

    def _remove_rest(self) -> None:
        """What processes that were killed have left."""
        for left in (self.folder / RUNS).glob(".*"):
            _remove(left)

    def _require_shared(self, seen: Callable[[], bool], what: str) -> None:
        """Wait until this process sees what another one has written."""
        end = time.monotonic() + (APPEARS if self.processes.count > 1 else 0)
        while not seen():
            if time.monotonic() > end:
                raise ValueError(
                    expected("out", f"a folder that all processes share, with {what} of the others", str(self.folder))
                )
            time.sleep(0.2)

    def _claim(self) -> None:
        path, runs = self.folder / PLAN, self.folder / RUNS
        if _ledger(path, self.what) is None:
            if runs.is_dir() and any(runs.iterdir()):
                raise ValueError(
                    expected("out", f"a folder without {RUNS}/, or with its {PLAN}", str(self.folder))
                    + f": {RUNS}/ has the files of something else"
                )
            # The whole file appears at once; of two processes with the same plan it does not matter which one is last
            self.folder.mkdir(parents=True, exist_ok=True)
            new = self.folder / f".{PLAN}.{os.getpid()}"
            ledger = {"what": self.what, "hash": self.hash, "runs": len(self.runs), "plan": self.plan}
            new.write_text(json.dumps(ledger, indent=1) + "\n", encoding="utf-8")
            os.replace(new, path)
        runs.mkdir(exist_ok=True)
        self._compare()

    def _compare(self) -> None:
        """Refuse to make runs of one plan in the folder of another."""
        ledger = _ledger(self.folder / PLAN, self.what)
        before = {} if ledger is None else ledger["plan"]
        for name in dict.fromkeys([*self.plan, *before]):
            if before.get(name) != self.plan.get(name):
                raise ValueError(
                    f"out: expected {name}={_short(before.get(name))}, as in the {self.what} in {str(self.folder)!r}, "
                    f"got {_short(self.plan.get(name))}: use the old value, or another folder"
                )


def plan_hash(plan: Mapping[str, Any]) -> str:
    """The same for equal plans in every process."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]


def finished_runs(folder: Path, what: str = "evaluation") -> tuple[int, int] | None:
    """(finished runs, all runs) of a folder of runs; None if it is none."""
    try:
        ledger = _ledger(folder / PLAN, what)
    except (OSError, ValueError):
        return None
    return None if ledger is None else (len(list((folder / RUNS).glob("[!.]*"))), int(ledger["runs"]))


def slugs(names: Iterable[str]) -> dict[str, str]:
    """{name: the same without characters that files cannot have}, different for different names."""
    names = list(names)
    found = {name: re.sub(r"[^\w.=+-]+", "_", name)[:60] for name in names}
    several = [name for name in names if list(found.values()).count(found[name]) > 1]
    return found | {name: f"{found[name]}_{names.index(name)}" for name in several}


def _ledger(path: Path, what: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        ledger = {name: found[name] for name in ("what", "plan", "runs", "hash")}
    except (ValueError, KeyError, TypeError):
        ledger = {"what": None}
    if ledger["what"] != what:
        raise ValueError(f"{str(path)!r} is not the plan of {_article(what)} {what}: remove it, or use another folder")
    return ledger


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


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
