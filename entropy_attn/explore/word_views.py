"""The charts of word maps: choose a word to see where it is attended to, point at a place to rank the words there."""

from __future__ import annotations

import base64
import io
from typing import Any

import altair as alt
import numpy as np

from entropy_attn.explore.grids import pooled
from entropy_attn.explore.page import Section
from entropy_attn.explore.profile_rows import short
from entropy_attn.explore.word_maps import WordMaps

SIDE = 64  # rows and columns at most
BUDGET = 120_000  # values, of some seven characters each
MAP_SIZE = 420
IMAGE_SIDE = 512  # pixels of the image in the page
BAR = 20


def words_section(maps: WordMaps) -> Section:
    """The part of the page about the maps of one image."""
    labels = _labels(maps.words)
    size = _side(maps)
    rows, coarse = word_rows(maps, labels, size)
    tables: dict[str, Any] = {"words": rows}
    if maps.image is not None:
        tables["image"] = [{"url": _data_url(maps.image)}]
    steps = list(maps.maps)
    start = max(range(len(labels)), key=lambda index: max(rows[index]["values"]))  # the word with the highest peak
    word = alt.param(name="word", value=labels[start], bind=alt.binding_select(options=labels, name="word"))
    step = alt.param(name="step", value=steps[0], bind=alt.binding_select(options=steps, name="step"))
    veil = alt.param(
        name="strength", value=0.75, bind=alt.binding_range(min=0, max=1, step=0.05, name="map over image")
    )
    # The last place stays shown when the pointer leaves, so that it can be read and compared
    place = alt.selection_point(
        name="place",
        fields=["cell"],
        on="pointerover",
        value=[{"cell": int(np.argmax(rows[start]["values"]))}],
        clear=False,
        toggle=False,
    )
    rows_shown, columns = rows[0]["rows"], rows[0]["columns"]
    chart = alt.hconcat(_heat(maps, place, rows_shown, columns), _ranking(labels, columns), spacing=40)
    chart = (
        chart.add_params(word, step, *([veil] if maps.image is not None else []))
        .properties(datasets=tables)
        .resolve_scale(color="independent")
        .configure_view(stroke=None)
        .configure_title(fontSize=13, anchor="start")
        .configure_axis(labelFontSize=12, titleFontWeight="normal")
    )  # fmt: skip
    notes = [f"maps averaged to {rows_shown} rows and {columns} columns for this page"] if coarse else []
    return Section(
        title=maps.title,
        facts=dict(maps.facts),
        table=[],
        table_title="",
        about="Choose a word to see how much each place of the image attends to it. Point at a place to rank the words "
        "there. Values are probabilities of the layers' softmax; what is missing to 1 went to other keys.",
        spec=chart.to_dict(),
        notes=notes,
    )  # fmt: skip


def word_rows(maps: WordMaps, labels: list[str], side: int) -> tuple[list[dict[str, Any]], bool]:
    """A row for each step and word, with the values of all cells; and whether cells were averaged."""
    rows, coarse = [], False
    for step, values in maps.maps.items():
        for label, grid in zip(labels, values, strict=True):
            shown = pooled(grid, side)
            coarse |= shown.shape != grid.shape
            size = {"rows": shown.shape[0], "columns": shown.shape[1]}
            rows.append({"step": step, "word": label, **size, "values": short(shown.ravel())})
    return rows, coarse


def _labels(words: Any) -> list[str]:
    """The words, numbered where one occurs more than once."""
    words, found = list(words), []
    for index, word in enumerate(words):
        if words.count(word) == 1:
            found.append(word)
        else:
            found.append(f"{word} ({words[: index + 1].count(word)})")
    return found


def _side(maps: WordMaps) -> int:
    """The largest number of rows and columns that fits into the page."""
    count, _, _ = next(iter(maps.maps.values())).shape
    side = SIDE
    while side > 8 and count * len(maps.maps) * _cells(maps, side) > BUDGET:
        side //= 2
    return side


def _cells(maps: WordMaps, side: int) -> int:
    _, rows, columns = next(iter(maps.maps.values())).shape
    return min(rows, side) * min(columns, side)


def _heat(maps: WordMaps, place: Any, rows: int, columns: int) -> Any:
    width, height = _shape(maps, rows, columns)
    base = (
        alt.Chart(alt.NamedData("words"), title=alt.Title(alt.expr("'attention to ' + word + ', step: ' + step")))
        .transform_filter("datum.word == word && datum.step == step")
        .transform_calculate(cell=f"sequence({rows * columns})")
        .transform_flatten(["values", "cell"])
        .transform_calculate(row=f"floor(datum.cell / {columns})", column=f"datum.cell % {columns}")
        .encode(x=alt.X("column:O", axis=None), y=alt.Y("row:O", axis=None))
    )
    opacity = alt.value(1) if maps.image is None else alt.value(alt.expr("strength"))
    cells = base.mark_rect(tooltip=True, cursor="crosshair").encode(
        color=alt.Color("values:Q", title="attention", scale=alt.Scale(scheme="inferno", zero=True, nice=False)),
        opacity=opacity,
        tooltip=["row:O", "column:O", alt.Tooltip("values:Q", title="attention", format=".3g")],
    )
    frame = base.transform_filter(place).mark_rect(fill=None, stroke="#00a0ff", strokeWidth=2)
    layers = [cells.add_params(place), frame]
    if maps.image is not None:
        shown = alt.Chart(alt.NamedData("image")).mark_image(width=width, height=height, aspect=False)
        layers.insert(0, shown.encode(url="url:N", x=alt.value(width / 2), y=alt.value(height / 2)))
    return alt.layer(*layers).properties(width=width, height=height)


def _shape(maps: WordMaps, rows: int, columns: int) -> tuple[int, int]:
    """Width and height of the map in pixels, its longer side `MAP_SIZE`, with the image's ratio."""
    across, down = (columns, rows) if maps.image is None else maps.image.size
    longer = max(across, down)
    return round(MAP_SIZE * across / longer), round(MAP_SIZE * down / longer)


def _ranking(labels: list[str], columns: int) -> Any:
    where = f"'row ' + floor(place.cell[0] / {columns}) + ', column ' + (place.cell[0] % {columns})"
    base = (
        alt.Chart(alt.NamedData("words"), title=alt.Title(alt.expr(f"'words at ' + {where}")))
        .transform_filter("datum.step == step")
        .transform_calculate(attention="datum.values[place.cell[0]]")
        .encode(
            y=alt.Y("word:N", sort=alt.EncodingSortField("attention", op="max", order="descending"), title=None),
            x=alt.X("attention:Q", title="attention"),
        )
    )
    bars = base.mark_bar().encode(color=alt.condition("datum.word == word", alt.value("#D55E00"), alt.value("#9aa5b1")))
    text = base.mark_text(align="left", dx=4).encode(text=alt.Text("attention:Q", format=".3g"))
    return alt.layer(bars, text).properties(width=300, height=alt.Step(BAR))


def _data_url(image: Any) -> str:
    shown = image.convert("RGB")
    shown.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
