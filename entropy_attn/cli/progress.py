"""Progress of long work on stderr, and what an interruption leaves behind."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from entropy_attn.cli import EXIT_INTERRUPTED, Refused, rank


def progress_bar() -> Any:
    """A `rich.progress.Progress` that disappears when it ends, and shows nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextlib.contextmanager
def run_progress(work: str = "sampling") -> Iterator[tuple[Any, Any]]:
    """(on_step, on_run) for work that is made of runs: a bar on a terminal, a plain line for each run elsewhere.

    `on_step` takes the run, or is None; `on_run` takes the run, its seconds (None if it was finished before), the
    number of finished runs, and the number of runs. Of several processes, the first one shows its own.
    """
    if rank() > 0:
        yield None, None
        return
    if not sys.stderr.isatty():
        yield None, _line
        return
    with progress_bar() as progress:
        task = progress.add_task(work, total=None)

        def run_ended(run: Any, _seconds: float | None, number: int, count: int) -> None:
            progress.update(task, total=count, completed=number, description=str(run))

        yield lambda run: progress.update(task, description=str(run)), run_ended


def _line(run: Any, seconds: float | None, number: int, count: int) -> None:
    spent = "finished before" if seconds is None else f"{seconds:.1f} s"
    print(f"entropy-attn: run {number} of {count}: {run}: {spent}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def kept_in(out: Path, kept: Callable[[Path], str | None]) -> Iterator[None]:
    """Say which finished runs an interruption or a failure leaves behind.

    Args:
        out: the folder.
        kept: what it says of the folder; None if no run was finished.
    """
    try:
        yield
    except KeyboardInterrupt:
        if rank() == 0:
            # The line break puts it below the ^C of the terminal
            print(f"\nentropy-attn: interrupted; {kept(out) or f'no run was finished in {out}'}", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Refused as error:
        left = kept(out) if error.during_runs and str(error) else None
        raise Refused(f"{error}; {left}") if left else error from None
