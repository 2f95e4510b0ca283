"""The sheet of maps: every word and row is drawn, on one colour scale, at any number of words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")

from entropy_attn.map_sheet import MAX_COLUMNS, map_sheet

PICTURE = Image.new("RGB", (48, 32), "white")


def shown(figure) -> list[np.ndarray]:
    return [axis.images[0].get_array() for axis in figure.axes if axis.images]


def titles(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_words_are_columns_and_names_are_rows(tmp_path):
    rows = {"mean": torch.full((2, 4, 6), 0.1), "step 0": torch.full((2, 4, 6), 0.3)}
    figure = map_sheet(PICTURE, rows, ["red", "fox"], "a red fox", subtitle="where from")
    assert titles(figure) == ["picture", "red", "fox"]
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == ["mean", "step 0"]
    assert figure.get_suptitle() == "a red fox" and figure.get_supxlabel() == "where from"
    _, mean, _, first, _ = shown(figure)
    assert (mean < first).all()  # one scale: what is lower everywhere is darker everywhere
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "attention to the word" and bar.get_ylim() == pytest.approx((0.1, 0.3))
    figure.savefig(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height


def test_many_words_go_on_below():
    labels = [str(number) for number in range(MAX_COLUMNS + 2)]
    figure = map_sheet(PICTURE, {"mean": torch.rand(len(labels), 4, 6)}, labels, "many " * 40)
    assert [title for title in titles(figure) if title != "picture"] == labels
    assert titles(figure).count("picture") == 2 and len(figure.get_suptitle().splitlines()) > 1


def test_the_map_lies_where_it_belongs():
    maps = torch.zeros(1, 4, 6)
    maps[0, 0, 5] = 1.0  # the upper right corner
    _, laid = shown(map_sheet(PICTURE, {"mean": maps}, ["fox"], "a fox"))
    light = np.asarray(laid, dtype=float).sum(-1)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert row < light.shape[0] / 4 and column > light.shape[1] * 5 / 6
