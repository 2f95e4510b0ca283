"""Word maps for the page: read from what the package writes, and shown as they are."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from entropy_attn.explore import WordMaps, read_maps
from entropy_attn.recorders.map_files import save_maps

WORDS = ("a", "red", "a")
BRANCHES = ("uncond", "cond")


def recorded(steps):
    """{step: (branch, image, token, row, column)} with values that differ everywhere."""
    shape = (2, 2, 3, 3, 5)
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 1000
    return {step: values + index for index, step in enumerate(steps)}


@pytest.mark.parametrize("ending", ["csv", "npz"])
@pytest.mark.parametrize("steps", [[None], [2, 5]])
def test_maps_are_read_as_they_were_written(tmp_path, ending, steps):
    written = recorded(steps)
    path = save_maps(tmp_path / f"maps.{ending}", written, BRANCHES, (WORDS, WORDS))
    found = read_maps(path)
    assert len(found) == 2
    for image, maps in enumerate(found):
        assert list(maps.words) == list(WORDS) and maps.facts["branch"] == "cond"
        assert list(maps.maps) == ["mean" if step is None else str(step) for step in steps]
        for step, values in written.items():
            shown = maps.maps["mean" if step is None else str(step)]
            np.testing.assert_allclose(shown, values[1, image], rtol=1e-6)


def test_a_mean_beside_its_steps(tmp_path):
    path = save_maps(tmp_path / "maps.csv", recorded([None, 3]), BRANCHES, (WORDS, WORDS))
    assert list(read_maps(path)[0].maps) == ["mean", "3"]


def test_a_step_without_the_branch_is_left_out_by_name(tmp_path):
    written = recorded([2, 5])
    written[5][1] = np.nan
    (maps, _) = read_maps(save_maps(tmp_path / "maps.npz", written, BRANCHES, (WORDS, WORDS)))
    assert list(maps.maps) == ["2"] and maps.facts["left out"].endswith(": 5")


def change(old, new):
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (change("attention", "value"), "expected the columns step,branch,picture,token,row,column,attention, got"),
        (lambda text: text.partition("\n")[0] + "\n", "expected at least one row, got none"),
        (lambda text: text.rstrip("\n").rpartition("\n")[0] + "\n", "cannot reshape"),
        (change("mean,uncond,0,a,0,1", "mean,uncond,0,a,1,0"), "expected the rows in the order step, branch"),
        (lambda text: text.replace("uncond", "left").replace("cond", "right"), "expected the branch 'cond' in"),
    ],
)
def test_a_table_that_is_no_maps_is_refused(tmp_path, spoil, said):
    path = save_maps(tmp_path / "maps.csv", recorded([None]), BRANCHES, (WORDS, WORDS))
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=f"^RUN: .*{re.escape(said)}"):
        read_maps(path)


def test_a_file_that_is_no_archive_or_is_absent_is_refused(tmp_path):
    with pytest.raises(ValueError, match="RUN: expected a file of maps, got"):
        read_maps(tmp_path / "none.csv")
    path = tmp_path / "maps.npz"
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ValueError, match=r"RUN: expected maps as MapRecorder\.save writes them, got"):
        read_maps(path)


@pytest.mark.parametrize(
    ("words", "maps", "said"),
    [
        (("a",), {}, "at least one map"),
        (("a", "b"), {"mean": np.ones((1, 2, 2))}, r"expected \(2, rows, columns\), .* got \(1, 2, 2\) at mean"),
        (("a",), {"mean": np.ones((1, 2, 2)), "3": np.ones((1, 2, 3))}, r"got \(1, 2, 3\) at 3"),
        (("a",), {"mean": np.full((1, 2, 2), np.nan)}, "expected finite values, got NaN or infinity at mean"),
    ],
)
def test_maps_that_cannot_be_shown_are_refused(words, maps, said):
    with pytest.raises(ValueError, match=f"maps: .*{said}"):
        WordMaps("title", words, maps)


def test_a_notebook_shows_the_page_as_it_opens():
    pytest.importorskip("vl_convert", reason="needs the extra [explore]")
    maps = WordMaps("title", ("a", "b"), {"mean": np.eye(4)[None].repeat(2, 0), "3": np.ones((2, 4, 4))})
    with Image.open(io.BytesIO(maps._repr_png_())) as image:
        assert image.format == "PNG" and min(image.size) > 400
    assert repr(maps) == "<WordMaps: title, 2 words of 4x4 tokens, steps mean, 3>"


def test_rows_hold_every_value_and_tell_equal_words_apart():
    pytest.importorskip("altair", reason="needs the extra [explore]")
    from entropy_attn.explore.word_views import _labels, word_rows

    values = np.random.default_rng(0).uniform(size=(3, 4, 6))
    assert _labels(WORDS) == ["a (1)", "red", "a (2)"]
    rows, coarse = word_rows(WordMaps("t", WORDS, {"mean": values, "1": values / 2}), _labels(WORDS), 64)
    assert not coarse and len(rows) == 6
    for row in rows:
        expected = values[["a (1)", "red", "a (2)"].index(row["word"])] / (1 if row["step"] == "mean" else 2)
        assert (row["rows"], row["columns"]) == (4, 6)
        np.testing.assert_allclose(np.reshape(row["values"], (4, 6)), expected, rtol=1e-3)
