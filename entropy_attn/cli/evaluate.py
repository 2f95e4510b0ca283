"""`entropy-attn evaluate`: the group of commands that evaluate many images."""

from __future__ import annotations

import typer

from entropy_attn.cli.evaluate_cost import cost
from entropy_attn.cli.evaluate_guidance import guidance
from entropy_attn.cli.evaluate_scale import scale
from entropy_attn.cli.help import Command, Group

evaluate = typer.Typer(name="evaluate", cls=Group, rich_markup_mode=None, no_args_is_help=True)


@evaluate.callback()
def _evaluate() -> None:
    """Evaluate images of many prompts: metrics with intervals, paired by prompt and noise.

    An evaluation that was interrupted continues when the same command is given again. Started with `torchrun
    --nproc-per-node N -m entropy_attn evaluate`, N processes divide it.

    Examples:

      entropy-attn evaluate scale --sizes 64,96,128 --out evaluation

      entropy-attn evaluate cost --sizes 64,96,128 --out cost

      entropy-attn evaluate guidance --limit 20 --out guidance
    """


for command in (scale, cost, guidance):
    evaluate.command(cls=Command)(command)
