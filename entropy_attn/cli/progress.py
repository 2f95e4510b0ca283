"""A progress bar on stderr."""

from __future__ import annotations

from typing import Any


def progress_bar() -> Any:
    """A `rich.progress.Progress` that disappears when it ends, and shows nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
