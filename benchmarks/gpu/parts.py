"""The parts of a run on a GPU, the most important first. Parts are data: the runner does not know what they do."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field

SCHEDULE_TESTS = ("tests/kernels/test_schedules.py", "tests/gpu/test_schedules.py")
WORKER = ("{python}", "-m", "benchmarks.gpu.worker")
HERE = ("--device", "{device}", "--commit", "{commit}")


@dataclass(frozen=True)
class Part:
    """A command with a time limit; with `case_seconds`, one that serves cases (see worker.py).

    In `command`, these are replaced: {python}, {out} (the folder of results), {work} (the folder that becomes the
    archive), {device}, {target}, {commit} and {jobs} (processes that compile in parallel).
    """

    name: str
    what: str
    command: tuple[str, ...]
    share: float  # of the remaining time, relative to the shares of the remaining parts
    least: float = 10.0  # seconds; skipped if it gets less
    case_seconds: float | None = None
    file: str | None = None  # for the rows of the cases; "archive/..." goes into the archive
    modules: tuple[str, ...] = ()  # skipped if one of these packages is missing
    programs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    usual: bool = True  # False: only if --only names it
    resumed: tuple[str, ...] = ()  # more arguments with --resume

    def missing(self) -> list[str]:
        """What it needs and this machine does not have."""
        absent = [f"the package {name}" for name in self.modules if importlib.util.find_spec(name) is None]
        return absent + [f"the program {name}" for name in self.programs if shutil.which(name) is None]


def _table(name: str, what: str, share: float, case_seconds: float, file: str | None = None, **more: object) -> Part:
    command = (*WORKER, name, *HERE)
    return Part(name, what, command, share, case_seconds=case_seconds, file=file or f"{name}.csv", **more)


def _tests(name: str, what: str, share: float, *paths: str) -> Part:
    """Workers wait for the compiler most of the time, so there is one for each core."""
    outcomes = ("-p", "benchmarks.gpu.outcomes", "--outcomes", "{out}/checks.csv", "--outcomes-part", name)
    several = ("-n", "{jobs}", "--dist", "loadgroup", "--max-worker-restart", "500")
    command = ("{python}", "-m", "pytest", "-q", "--tb", "short", "-p", "no:cacheprovider", *several, *outcomes, *paths)
    return Part(
        name, what, command, share, least=30.0, modules=("pytest", "xdist", "hypothesis"),
        environment={"OMP_NUM_THREADS": "1"}, resumed=("--outcomes-resume",),
    )  # fmt: skip


PARTS = (
    Part("warm", "compiles the kernels of the tables, on all cores and without the GPU",
         ("{python}", "-m", "benchmarks.gpu.warm", "--target", "{target}", "--jobs", "{jobs}"),
         60, modules=("pytest",)),
    _table("smoke", "20 kinds of calls against float64", 60, 45, "checks.csv"),
    _table("forward", "the forward pass against torch's", 110, 60),
    _table("maps", "cross-attention with its map", 50, 60),
    _table("backward", "forward and backward against torch's", 90, 75),
    _table("launch", "host time of a call", 20, 45),
    _tests("tests", "tests/gpu and tests/kernels, without the schedules", 150, "tests/gpu", "tests/kernels",
           *(f"--ignore={path}" for path in SCHEDULE_TESTS)),
    _table("tuning", "every plain candidate of the forward kernel", 70, 60),
    _table("guidance", "a guided step against diffusers' Attend-and-Excite", 30, 120, "archive/tsam_cost.csv",
           modules=("diffusers", "transformers", "tqdm")),
    _table("bench", "the models' calls of `entropy-attn bench`", 60, 60, "archive/bench/bench.csv", modules=("rich",)),
    Part("figures", "figures of the bench",
         ("{python}", "-m", "benchmarks.gpu.figures", "{work}/bench"), 15, modules=("matplotlib", "pandas")),
    _tests("schedule-tests", "tests of the schedules that have never run on a GPU", 30, *SCHEDULE_TESTS),
    _table("schedules", "tuning with these schedules", 40, 60, "tuning.csv"),
    _table("sanitize", "a few calls under NVIDIA's compute-sanitizer", 100, 200, "checks.csv",
           programs=("compute-sanitizer",), usual=False),
)  # fmt: skip
