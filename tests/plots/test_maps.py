"""The sheet of maps: every word and row is drawn, on the right color scale, for any number of words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")

from entropy_attn.plots.maps import MAX_COLUMNS, grid_of, map_sheet

IMAGE = Image.new("RGB", (48, 32), "white")


def shown(figure) -> list[np.ndarray]:
    return [axis.images[0].get_array() for axis in figure.axes if axis.images]


def titles(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_words_are_columns_and_names_are_rows(tmp_path):
    rows = {"mean": torch.full((2, 4, 6), 0.1), "step 0": torch.full((2, 4, 6), 0.3)}
    figure = map_sheet(IMAGE, rows, ["red", "fox"], "a red fox", subtitle="where from", common_scale=True)
    assert titles(figure) == ["image", "red", "fox"]
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == ["mean", "step 0"]
    assert figure.get_suptitle() == "a red fox" and figure.get_supxlabel() == "where from"
    _, mean, _, first, _ = shown(figure)
    assert (mean < first).all()  # one scale: lower values are darker in every map
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "attention to the word" and bar.get_ylim() == pytest.approx((0.1, 0.3))
    figure.savefig(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height


def test_many_words_continue_below():
    labels = [str(number) for number in range(MAX_COLUMNS + 2)]
    figure = map_sheet(IMAGE, {"mean": torch.rand(len(labels), 4, 6)}, labels, "many " * 40)
    assert titles(figure) == ["image", *labels] and len(figure.get_suptitle().splitlines()) > 1


@pytest.mark.parametrize("words", [1, 8, 9, 20])
@pytest.mark.parametrize("rows", [1, 2])
def test_bands_are_even_and_the_image_is_shown_once(words, rows):
    """There are fewer empty cells than bands; the rows of a band stay together."""
    bands, columns = grid_of(words)
    assert columns <= MAX_COLUMNS and 0 <= bands * columns - (words + 1) < bands
    labels = [str(number) for number in range(words)]
    maps = {f"row {row}": torch.rand(words, 2, 3) for row in range(rows)}
    figure = map_sheet(IMAGE, maps, labels, "many")
    cells = [axis for axis in figure.axes[:-1] if axis.images]
    assert len(cells) == 1 + rows * words and titles(figure) == ["image", *sorted(labels, key=titles(figure).index)]
    names = [text.get_text() for axis in figure.axes for text in axis.texts if text.get_text().startswith("row")]
    assert len(names) == (bands * rows if rows > 1 else 0)


def test_each_word_has_a_color_scale_and_its_highest_value():
    """At their highest values, the faint word and the strong word are equally bright; the numbers are below."""
    maps = torch.zeros(2, 4, 6)
    maps[0, 0, 5], maps[1, 0, 5] = 0.5, 0.001
    figure = map_sheet(IMAGE, {"step 0": maps / 2, "mean": maps}, ["fox", "the"], "the fox")
    _, _, _, strong, faint = shown(figure)
    assert (np.asarray(strong) == np.asarray(faint)).all()
    half = shown(figure)[1]
    assert np.asarray(half, dtype=float).sum() < np.asarray(strong, dtype=float).sum()  # the same scale in all rows
    said = [text.get_text() for axis in figure.axes for text in axis.texts if text.get_text().startswith("highest")]
    assert said == ["highest 0.5", "highest 0.001"]
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "attention to the word / its highest" and bar.get_ylim() == pytest.approx((0, 1))
    together = map_sheet(IMAGE, {"mean": maps}, ["fox", "the"], "the fox", common_scale=True)
    _, strong, faint = shown(together)
    assert np.asarray(strong, dtype=float).max() > np.asarray(faint, dtype=float).max()
    assert together.axes[-1].get_ylim() == pytest.approx((0, 0.5))
    assert not [text for axis in together.axes for text in axis.texts]


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"rows\['mean'\]: expected shape \(2, h, w\), got \(3, 4, 6\)"):
        map_sheet(IMAGE, {"mean": torch.rand(3, 4, 6)}, ["a", "b"], "a b")
    with pytest.raises(ValueError, match="rows, labels: expected at least one of each"):
        map_sheet(IMAGE, {}, ["a"], "a")


def test_a_map_is_drawn_in_the_right_orientation():
    maps = torch.zeros(1, 4, 6)
    maps[0, 0, 5] = 1.0  # the upper right corner
    _, laid = shown(map_sheet(IMAGE, {"mean": maps}, ["fox"], "a fox"))
    light = np.asarray(laid, dtype=float).sum(-1)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert row < light.shape[0] / 4 and column > light.shape[1] * 5 / 6
