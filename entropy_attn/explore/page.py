"""The HTML file: header, charts, and the libraries that draw them, all inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

# The browser itself refuses every request of the page. Vega compiles its expressions, hence unsafe-eval.
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 1.2rem auto; max-width: 1240px; padding: 0 1rem }
h1 { font-size: 1.35rem; margin: 0 0 .3rem }
h2 { font-size: 1.1rem; margin: 1.4rem 0 .3rem }
p { margin: .25rem 0; max-width: 60rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0 }
dt { color: #666 } dd { margin: 0 }
table { border-collapse: collapse; font-size: 13px; margin: .5rem 0 }
th, td { border: 1px solid #ddd; padding: .15rem .5rem; text-align: right } th { background: #f6f6f4 }
td:first-child, th:first-child { text-align: left }
.controls form, .controls { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: .5rem 0 }
.controls .vega-bind-name { display: inline-block; margin-right: .5rem; color: #666 }
.controls label { margin-right: .5rem }
.chart { overflow-x: auto; width: 100% }
.notes { color: #666; font-size: 13px }
"""
SCRIPT = """
window.views = {};
for (const [name, spec] of Object.entries(JSON.parse(document.getElementById("specs").textContent))) {
  const actions = { export: true, source: false, compiled: false, editor: false };
  const options = { actions, renderer: "canvas", bind: `#${name}-controls` };
  vegaEmbed(`#${name}`, spec, options).then(result => { window.views[name] = result.view; });
}
"""


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        title: its heading.
        facts: {name: value}, a list of facts below the heading.
        table: rows of a table that can be opened, the first one its heading; may be empty.
        table_title: what the table is.
        about: what to know and to do, above the chart.
        spec: the chart, as Vega-Lite.
        notes: remarks below the chart.
    """

    title: str
    facts: dict[str, str]
    table: list[list[str]]
    table_title: str
    about: str
    spec: dict[str, Any]
    notes: list[str]


def write(out: Path, sections: Sequence[Section]) -> Path:
    """Write the page."""
    import vl_convert

    bundle: Any = vl_convert.javascript_bundle  # its stub requires the snippet, which is optional
    library = bundle(vl_version=_library_version())
    out.write_text(render(sections, library), encoding="utf-8")
    return out


def still(section: Section) -> bytes:
    """The chart as the page opens with it, as a PNG file."""
    import vl_convert

    return vl_convert.vegalite_to_png(section.spec, vl_version=_library_version())


def _library_version() -> str:
    import altair

    return ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def render(sections: Sequence[Section], library: str) -> str:
    """The text of the page."""
    names = [f"chart{index}" for index in range(len(sections))]
    charts = dict(zip(names, (section.spec for section in sections), strict=True))
    specs = _inside_script(json.dumps(charts, allow_nan=False, separators=(",", ":")))
    body = "\n".join(_section(name, section) for name, section in zip(names, sections, strict=True))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(sections[0].title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="specs">{specs}</script>\n'
        f"<script>{_closed(library)}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )  # fmt: skip


def _section(name: str, section: Section) -> str:
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in section.facts.items())
    notes = "".join(f"<p>{escape(text)}</p>" for text in section.notes)
    table = ""
    if section.table:
        head, *rows = section.table
        lines = [_row("th", head), *(_row("td", row) for row in rows)]
        table = f"<details><summary>{escape(section.table_title)}</summary><table>{''.join(lines)}</table></details>"
    return (
        f"<section>\n<h1>{escape(section.title)}</h1>\n<dl>{facts}</dl>\n{table}\n<p>{escape(section.about)}</p>\n"
        f'<div class="controls" id="{name}-controls"></div>\n<div class="chart" id="{name}"></div>\n'
        f'<div class="notes">{notes}</div>\n</section>'
    )


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _inside_script(text: str) -> str:
    """JSON that cannot end the element it is in, whatever a prompt contains."""
    return text.replace("<", "\\u003c")


def _closed(script: str) -> str:
    return script.replace("</script", "<\\/script")
