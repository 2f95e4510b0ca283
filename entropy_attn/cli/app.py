"""The commands, put together."""

from __future__ import annotations

import typer

from .bench import bench
from .generate import generate
from .info import info
from .maps import maps
from .profile import profile

app = typer.Typer(
    name="entropy-attn",
    help="Diffusion attention with a scale chosen per call and its entropy measured in the same pass.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(profile)
app.command()(generate)
app.command()(maps)
app.command()(bench)
app.command()(info)
