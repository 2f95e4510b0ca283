"""What is done on a card, most important first. Parts are data: the runner knows nothing of what they do."""

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
    """A command with a limit; with ``case_seconds``, one that serves cases (see worker.py).

    In ``command``, {python}, {out} (the folder of results), {work} (what goes into the archive), {device}, {target},
    {commit} and {jobs} (processes that compile side by side) are filled in.
    """

    name: str
    what: str
    command: tuple[str, ...]
    share: float  # of the time left, beside the other parts' that are still to come
    least: float = 10.0  # seconds; with less it is skipped
    case_seconds: float | None = None
    file: str | None = None  # of the cases' rows; in "archive/" it goes into the archive
    modules: tuple[str, ...] = ()  # without one of these packages it is skipped
    programs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    usual: bool = True  # False: only where --only names it
    resumed: tuple[str, ...] = ()  # more of the command with --resume

    def missing(self) -> list[str]:
        """What it needs and this machine lacks."""
        absent = [f"the package {name}" for name in self.modules if importlib.util.find_spec(name) is None]
        return absent + [f"the program {name}" for name in self.programs if shutil.which(name) is None]


def _table(name: str, what: str, share: float, case_seconds: float, file: str | None = None, **more: object) -> Part:
    command = (*WORKER, name, *HERE)
    return Part(name, what, command, share, case_seconds=case_seconds, file=file or f"{name}.csv", **more)


def _tests(name: str, what: str, share: float, *paths: str) -> Part:
    """Each worker waits for the compiler most of the time, so there are as many as cores."""
    own = ("-p", "benchmarks.gpu.outcomes", "--outcomes", "{out}/checks.csv", "--outcomes-part", name)
    several = ("-n", "{jobs}", "--dist", "loadgroup", "--max-worker-restart", "500")
    command = ("{python}", "-m", "pytest", "-q", "--tb", "short", "-p", "no:cacheprovider", *several, *own, *paths)
    return Part(
        name, what, command, share, least=30.0, modules=("pytest", "xdist", "hypothesis"),
        environment={"OMP_NUM_THREADS": "1"}, resumed=("--outcomes-resume",),
    )  # fmt: skip


PARTS = (
    Part("warm", "compiles what the tables launch, on all cores and without the GPU",
         ("{python}", "-m", "benchmarks.gpu.warm", "--target", "{target}", "--jobs", "{jobs}"),
         60, modules=("pytest",)),
    _table("smoke", "20 calls of every kind against float64", 60, 45, "checks.csv"),
    _table("forward", "the forward pass against torch's", 110, 60),
    _table("maps", "cross-attention with its map", 50, 60),
    _table("backward", "forward and backward against torch's", 90, 75),
    _table("launch", "what a call costs the host", 20, 45),
    _tests("tests", "tests/gpu and tests/kernels, but for the schedules", 150, "tests/gpu", "tests/kernels",
           *(f"--ignore={path}" for path in SCHEDULE_TESTS)),
    _table("tuning", "every plain candidate of the forward kernel", 70, 60),
    _table("guidance", "a guided step against diffusers' Attend-and-Excite", 30, 120, "archive/tsam_cost.csv",
           modules=("diffusers", "transformers", "tqdm")),
    _table("bench", "the models' calls of `entropy-attn bench`", 60, 60, "archive/bench/bench.csv", modules=("rich",)),
    Part("figures", "pictures of the bench's rows",
         ("{python}", "-m", "benchmarks.gpu.figures", "{work}/bench"), 15, modules=("matplotlib", "pandas")),
    _tests("schedule-tests", "tests of the schedules that have not run on a card", 30, *SCHEDULE_TESTS),
    _table("schedules", "tuning with those schedules", 40, 60, "tuning.csv"),
    _table("sanitize", "a few calls under NVIDIA's compute-sanitizer", 100, 200, "checks.csv",
           programs=("compute-sanitizer",), usual=False),
)  # fmt: skip
