"""The `entropy-attn` application: all commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from entropy_attn.cli.bench import bench
from entropy_attn.cli.evaluate import evaluate
from entropy_attn.cli.explore import explore
from entropy_attn.cli.generate import generate
from entropy_attn.cli.help import Command, Group
from entropy_attn.cli.info import info
from entropy_attn.cli.maps import maps
from entropy_attn.cli.profile import profile

app = typer.Typer(
    name="entropy-attn",
    cls=Group,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(requested: bool) -> None:
    if requested:
        from entropy_attn import __version__

        print(f"entropy-attn {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Attention for diffusion models: choose the scale of each call, and measure its entropy in the same pass.

    Examples:

      entropy-attn profile --out profile

      entropy-attn generate --prompt "two red circles" --size 128x128 --compare --out two.png

      entropy-attn COMMAND --help
    """


for command in (profile, generate, maps, explore, bench, info):
    app.command(cls=Command)(command)

app.add_typer(evaluate)
