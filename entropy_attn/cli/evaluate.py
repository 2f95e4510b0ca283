"""`entropy-attn evaluate`: the group of commands that evaluate many images."""

from __future__ import annotations

from collections.abc import Callable

import typer

from entropy_attn.cli.help import Command, Group

evaluate = typer.Typer(name="evaluate", cls=Group, rich_markup_mode=None, no_args_is_help=True)


@evaluate.callback()
def _evaluate() -> None:
    """Evaluate images of many prompts: metrics with intervals, paired by prompt and noise.

    An evaluation that was interrupted continues when the same command is given again.
    """


COMMANDS: tuple[Callable[..., None], ...] = ()
for command in COMMANDS:
    evaluate.command(cls=Command)(command)
