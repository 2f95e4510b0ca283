"""The figures of scale policies: rows and columns are what they say, from the noise that the evaluation uses."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from benchmarks.common import write_rows
from benchmarks.shapes.transformer import figure
from benchmarks.shapes.transformer.evaluate import captions_of
from benchmarks.shapes.transformer.images import Sampler
from benchmarks.shapes.transformer.paired import FIELDS, summary
from docs.generate import scale_rows
from entropy_attn.evaluation.shapes_captions import shapes_scores
from entropy_attn.scale import LogNoRoot
from entropy_attn.shapes.scenes import parse_caption
from tests.support.shapes_transformer import shapes_transformer

__all__ = ["shapes_transformer"]


def test_rows_are_policies_and_columns_are_sizes(shapes_transformer):
    sample = Sampler(shapes_transformer, steps=2, guidance_scale=4.0)
    captions, sizes = captions_of("report", 2), [(64, 64), (48, 96)]
    rows = scale_rows.rows_of(sample, ["off", "lognoroot"], sizes, dict(enumerate(captions)))
    assert list(rows) == ["off", "lognoroot"] and all(len(images) == 4 for images in rows.values())
    assert [image.size for image in rows["off"]] == [(64, 64), (96, 48)] * 2
    assert rows["off"][0].tobytes() == rows["lognoroot"][0].tobytes()  # the training size
    alone = sample(captions[1:], [1], (48, 96), LogNoRoot())[0]
    np.testing.assert_allclose(np.asarray(alone, int), np.asarray(rows["lognoroot"][3], int), atol=1)
    drawn = scale_rows.draw(rows, sizes, captions, "title")
    axes = drawn.axes
    complete = {
        name: [bool(shapes_scores(image, captions[at // 2])["presence"]) for at, image in enumerate(images)]
        for name, images in rows.items()
    }
    names = [f"{name}\n{sum(found)} of 4\ncomplete" for name, found in complete.items()]
    assert [axis.get_ylabel() for axis in axes[::4]] == names
    framed = [axis.spines["left"].get_linewidth() > 2 for axis in axes]
    assert framed == [not one for found in complete.values() for one in found]
    titles = [axis.get_title(loc="left").replace("\n", " ") for axis in axes[:4]]
    assert titles == [captions[0], "", captions[1], ""]
    assert [axis.get_xlabel() for axis in axes[4:]] == ["64x64", "48x96"] * 2


def test_captions_with_several_objects_keep_their_numbers():
    every, several = scale_rows.first_captions(40, 1), scale_rows.first_captions(3, 3)
    assert list(every) == list(range(40)) and list(every.values()) == captions_of("report", 40)
    assert len(several) == 3 and all(every.get(n, text) == text for n, text in several.items())
    assert all(parse_caption(text).total >= 3 for text in several.values())
    assert [n for n in every if parse_caption(every[n]).total >= 3][:1] == list(several)[:1]


def test_the_command_writes_a_figure(shapes_transformer, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.png"
    given = ["--model", str(shapes_transformer), "--sizes", "64", "--captions", "1", "--steps", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["scale_rows", *given, "--scales", "off,logn"])
    scale_rows.main()
    assert out.stat().st_size > 1000
    monkeypatch.setattr(sys, "argv", ["scale_rows", *given, "--scales", "off,cosine"])
    with pytest.raises(ValueError, match="scale: expected one of off, logn"):
        scale_rows.main()


def test_the_figure_of_the_summary(tmp_path, monkeypatch, capsys):
    def rows(found):
        return [{"caption": str(n), "seed": n, "found": f, "presence": int(f > 1), "exact count": int(f == 2),
                 "count error": abs(f - 2)} for n, f in enumerate(found)]  # fmt: skip

    table = summary("64x64", {"off": rows([2, 2, 1])})
    table += summary("96x96", {"off": rows([4, 5, 1]), "LogN": rows([2, 3, 1])})
    write_rows(tmp_path / "summary.csv", table, FIELDS)
    read = figure.read_rows(tmp_path / "summary.csv")
    axes = figure.draw(read, "title").axes
    assert {axis.get_xlim() for axis in axes} == {(-0.5, 1.5)}
    labels = axes[0].get_legend_handles_labels()[1]
    assert labels == ["off", "LogN"] and [t.get_text() for t in axes[0].get_xticklabels()] == ["64x64", "96x96"]
    assert [len(axis.get_legend_handles_labels()[1]) for axis in axes] == [2, 2, 2, 1, 1, 1]
    (points,) = [container.lines[0].get_ydata() for container in axes[5].containers]
    assert points == pytest.approx([-4 / 3])  # errors 2, 3, 1 against 0, 1, 1
    out = tmp_path / "summary.png"
    monkeypatch.setattr(sys, "argv", ["figure", "--csv", str(tmp_path / "summary.csv"), "--out", str(out)])
    figure.main()
    assert out.stat().st_size > 1000
    monkeypatch.setattr(sys, "argv", ["figure", "--csv", str(tmp_path / "none.csv"), "--out", str(out)])
    with pytest.raises(SystemExit):
        figure.main()
    assert "expected a table of the evaluation" in capsys.readouterr().err
