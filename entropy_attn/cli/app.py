"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from .bench import bench
from .generate import generate
from .help import Command, Group
from .info import info
from .maps import maps
from .profile import profile

app = typer.Typer(
    name="entropy-attn",
    cls=Group,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"entropy-attn {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Diffusion attention with a scale chosen per call and its entropy measured in the same pass.

    Examples:

      entropy-attn profile --out profile

      entropy-attn generate --prompt "two red circles" --size 128x128 --compare --out two.png

      entropy-attn COMMAND --help
    """


for command in (profile, generate, maps, bench, info):
    app.command(cls=Command)(command)
