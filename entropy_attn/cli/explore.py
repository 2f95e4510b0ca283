"""`entropy-attn explore`: a page to look at profiles and word maps in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from entropy_attn.cli.outputs import output_page
from entropy_attn.cli.refusals import refusals

EXAMPLE = (
    "Examples:\n\n"
    "  entropy-attn explore profile --out page.html\n\n"
    "  entropy-attn explore profile maps.csv --out page.html\n"
)


def explore(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="One or more: folders that `profile --out` wrote, and files of maps: the .csv of `maps --csv`, "
            "the .csv or .npz of MapRecorder.save.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The .html file to write; creates its folder.")] = Path("explore.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    with refusals():
        from entropy_attn.explore import read_maps, read_profile, require, write_page

        require()
        page = output_page(out)
        given = [Path(run) for run in runs]
        profiles = [read_profile(path) for path in given if path.suffix.lower() not in (".csv", ".npz")]
        maps = [found for path in given if path.suffix.lower() in (".csv", ".npz") for found in read_maps(path)]
        write_page(page, profiles, maps)
    size = out.stat().st_size
    if as_json:
        print(json.dumps({"runs": list(runs), "out": str(out), "bytes": size}, indent=2))
    else:
        print(f"Written to {out.resolve()} ({size / 1e6:.1f} MB)")


explore.__doc__ = f"Write one HTML file to explore profiles and word maps; it needs no network.\n\n{EXAMPLE}"
