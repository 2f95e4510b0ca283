"""What the processes of test_processes.py do."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist

from entropy_attn.runs.folder import RunFolder
from entropy_attn.runs.processes import launched

PLAN = {"model": "m"}
NAMES = [f"{size}-{number}" for size in (1, 2, 3) for number in "abcd"]


def size_of(name: str) -> int:
    return int(name[0])


def complete(folder: Path, plan: dict[str, Any], make: Any) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The runs that this process has made, and what it was told of all."""
    made: list[str] = []
    told: list[tuple[Any, ...]] = []

    def maker(name: str, target: Path) -> None:
        make(name, len(made))
        (target / "text").write_text(name)
        made.append(name)

    with launched() as processes:
        store = RunFolder(folder, plan, NAMES, processes=processes)
        store.complete(maker, lambda *run: told.append(run), size_of)
        assert not store.missing()
    return made, told


def write(rank: int, folder: Path) -> Any:
    return complete(folder, PLAN, lambda name, number: None)


def write_other_plans(rank: int, folder: Path) -> Any:
    return complete(folder, {**PLAN, "rank": rank}, lambda name, number: None)


def write_apart(rank: int, folder: Path) -> Any:
    from entropy_attn.runs import folder as module

    module.APPEARS = 1.0
    return complete(folder / str(rank), PLAN, lambda name, number: None)


def fail(rank: int, folder: Path) -> Any:
    """Process 1 fails in its second run."""

    def make(name: str, number: int) -> None:
        if rank == 1 and number == 1:
            raise ValueError(f"no {name}")

    start = time.monotonic()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            complete(folder, PLAN, make)
        except Exception as error:
            told = (type(error).__name__, str(error), [str(each.message) for each in warned])
    return told, time.monotonic() - start, dist.is_initialized()


def be_killed(rank: int, folder: Path) -> Any:
    """Process 1 is killed in its second run."""

    def make(name: str, number: int) -> None:
        if rank == 1 and number == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return complete(folder, PLAN, make)


def be_interrupted(rank: int, folder: Path) -> Any:
    """Process 0 has made its runs, and gets a Ctrl-C while it waits for process 1, which takes longer."""
    if rank == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        (folder / "pid").write_text(str(os.getpid()))

    def make(name: str, number: int) -> None:
        if rank == 1 and number == 1:
            while len(list((folder / "runs").glob("[!.]*"))) < 7:  # 6 of process 0
                time.sleep(0.05)
            time.sleep(0.3)
            os.kill(int((folder / "pid").read_text()), signal.SIGINT)
            wait = time.monotonic() + 60
            while not (folder / "interrupted").exists():
                if time.monotonic() > wait:
                    (folder / "late").touch()
                    break
                time.sleep(0.05)

    try:
        complete(folder, PLAN, make)
    except KeyboardInterrupt:
        (folder / "interrupted").touch()
        return "too late" if (folder / "late").exists() else "interrupted"
    return "went on"


def several_times(rank: int) -> Any:
    """Groups one after another, inside each other, and beside another one."""
    found = []
    for _ in range(5):
        with launched() as processes, launched() as inner:
            found.append((processes.from_first(lambda: rank), inner.from_first(lambda: "x")))
        found.append(dist.is_initialized())
    dist.init_process_group("gloo")
    with launched() as processes:
        found.append(processes.count)
    found.append(dist.is_initialized())
    return found


def after_accelerate(rank: int) -> Any:
    """Without a GPU and without cpu=True, accelerate makes a group and counts one process."""
    from accelerate import PartialState

    alone = PartialState().num_processes
    with launched() as processes:
        return alone, processes.count, processes.rank == rank


def mismatch(rank: int) -> Any:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    os.environ["WORLD_SIZE"] = "3"
    with launched():
        return "accepted"


def profile(rank: int, model: Path, out: Path, plan: dict[str, Any]) -> Any:
    """What each process gets from `ea.profile`, in short, and the runs that it made."""
    import entropy_attn as ea
    from entropy_attn.pipelines import load_pipeline

    runs: list[str] = []
    result = ea.profile(
        load_pipeline(str(model)), **plan, out=out, distributed=True,
        on_run=lambda run, seconds, *_: seconds is not None and runs.append(str(run)),
    )  # fmt: skip
    entropy = float(result.entropy["mean"].sum())
    return runs, (entropy, len(result.pictures), sorted(result.maps), sorted(result.files))


def command(rank: int, arguments: list[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process."""
    from entropy_attn.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def command_with_a_kill(rank: int, arguments: list[str]) -> tuple[int, str, str]:
    """The same; process 1 is killed in its second run."""
    from entropy_attn.profiling import call

    run_once, begun = call.run_once, []

    def run(*given: Any) -> Any:
        begun.append(given)
        if (rank, len(begun)) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return run_once(*given)

    call.run_once = run
    return command(rank, arguments)


if __name__ == "__main__":  # under torchrun: process 1 is killed once in its second run, and started again
    number, begun_once = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    done = (be_killed if begun_once else write)(number, Path(sys.argv[1]))
    # Not printed: the processes share one standard output, where Gloo writes too, and lines run together
    Path(sys.argv[2], str(number)).write_text(str(len(done[0])))
