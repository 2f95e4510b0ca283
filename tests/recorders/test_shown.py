"""Summaries, figures and HTML of recorders, against pandas and torch on what was recorded."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import entropy_attn as ea
from entropy_attn.integrations.diffusers import apply
from entropy_attn.recorders.shown import by_layer
from tests.support.tiny_models import make_text_pipe
from tests.test_display import Reader

PROMPT, WORDS = "a b cd", ("a", "b", "cd")


@pytest.fixture(scope="module")
def recorded():
    """The three recorders of one generation of two images, 32 x 48 pixels."""
    pipe = make_text_pipe()
    recorders = ea.EntropyRecorder(), ea.ResponseRecorder(steps=[1]), ea.MapRecorder(WORDS, all_branches=True)
    with apply(pipe, record=recorders, scale=ea.scale.LogN()):
        generate(pipe, [PROMPT, PROMPT])
    return recorders


def generate(pipe, prompts):
    generators = [torch.Generator().manual_seed(at) for at in range(len(prompts))]
    pipe(prompts, height=32, width=48, num_inference_steps=2, generator=generators, output_type="latent")


@pytest.mark.parametrize(("which", "entropy", "others"), [(0, "mean", ["scale"]), (1, "entropy", ["response"])])
def test_the_summary_is_the_mean_of_the_table(recorded, which, entropy, others):
    table, summary = recorded[which].to_dataframe(), recorded[which].summary()
    keys = ["layer", "kind", "branch", "seqlen_q", "seqlen_k"]
    expected = table.groupby(keys, sort=False)[[entropy, *others]].mean()
    assert len(summary) == len(expected) > 2
    for row in summary.to_dict("records"):
        key = tuple(row[name] for name in keys)
        of_layer = table[(table[keys] == pd.Series(dict(zip(keys, key, strict=True)))).all(axis=1)]
        by_head = of_layer.groupby("head")[entropy].mean()
        for name in (entropy, *others):
            assert row[name] == pytest.approx(expected.loc[key, name])
        assert row["relative"] == pytest.approx(row[entropy] / math.log(row["seqlen_k"]))
        assert (row["head_min"], row["head_max"]) == (pytest.approx(by_head.min()), pytest.approx(by_head.max()))
        assert (row["heads"], row["steps"]) == (of_layer["head"].nunique(), of_layer["step"].nunique())
    first = table.drop_duplicates(keys)
    assert summary[keys].to_records(index=False).tolist() == first[keys].to_records(index=False).tolist()


def test_a_layer_with_one_key_has_no_relative_entropy():
    columns = {"layer": ["a"], "kind": ["self"], "branch": ["all"], "seqlen_q": [1], "seqlen_k": [1], "step": [0]}
    (row,) = by_layer({**columns, "head": [0], "mean": [0.0]}, "mean", [])
    assert math.isnan(row["relative"]) and row["mean"] == row["head_min"] == 0.0


def test_the_summary_of_maps_is_that_of_their_values(recorded):
    maps = recorded[2]
    rows, found = maps.summary().to_dict("records"), maps.maps()
    order = itertools.product(range(2), range(len(maps.branch_names)), range(len(maps.tokens)))
    for row, (image, branch, word) in zip(rows, order, strict=True):
        values = found[branch, image, word].double()
        assert (row["picture"], row["branch"]) == (image, maps.branch_names[branch])
        assert (row["token"], row["positions"]) == (maps.tokens[word], maps.positions[word])
        assert (row["mean"], row["max"]) == (pytest.approx(float(values.mean())), pytest.approx(float(values.max())))
        assert values[row["row"], row["column"]] == values.max()
    assert maps.tokens == ("a", "b", "cd") and len(maps.positions[2]) == 2


@pytest.mark.parametrize("which", range(3))
def test_a_notebook_shows_the_rows_of_the_summary(recorded, which):
    recorder = recorded[which]
    found, summary = Reader(recorder._repr_html_()), recorder.summary()
    assert found.text.startswith(f"{type(recorder).__name__}\n")
    if which == 2:
        summary = summary[summary["picture"] == 0]
        assert found.images == len(summary) == 6 and "image 0 of 2" in found.text
    assert found.rows[0][: len(summary.columns)] == list(summary.columns)
    assert [row[0] for row in found.rows[1:]] == list(summary.iloc[:, 0])


def test_the_pixels_of_a_small_map_are_those_of_the_map():
    from entropy_attn.recorders.overlay import color_map
    from entropy_attn.recorders.shown import THUMBNAIL, thumbnail

    markup = thumbnail(torch.tensor([[0.0, 0.5], [0.25, 1.0]]))
    import base64
    import io

    data = base64.b64decode(markup.partition("base64,")[2].rstrip('">'))
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels.shape == (THUMBNAIL, THUMBNAIL, 3)
    lowest, highest = (np.round(255 * np.array(color_map()(value)[:3])) for value in (0.0, 1.0))
    assert (pixels[0, 0] == lowest).all() and (pixels[-1, -1] == highest).all()


@pytest.mark.parametrize("make", [ea.EntropyRecorder, ea.ResponseRecorder, ea.MapRecorder])
def test_before_anything_is_recorded(make):
    recorder = make()
    assert "nothing recorded yet" in recorder._repr_html_()
    with pytest.raises(ValueError, match="recorded"):
        recorder.plot()
    if make is ea.MapRecorder:
        with pytest.raises(ValueError, match="recorded"):
            recorder.summary()
    else:
        assert recorder.summary().empty


def test_the_figure_of_entropies_has_each_head_and_step(recorded):
    figure, table = recorded[0].plot(), recorded[0].to_dataframe()
    assert isinstance(figure, Figure)
    rows = table[(table["kind"] == "self") & (table["branch"] == "cond")]
    relative = rows["mean"] / np.log(rows["seqlen_k"])
    layers = list(dict.fromkeys(rows["layer"]))
    heads, steps = figure.axes[0], figure.axes[1]
    shown = np.asarray(heads.images[0].get_array())
    for at, layer in enumerate(layers):
        here = rows["layer"] == layer
        expected = relative[here].groupby(rows.loc[here, "head"]).mean()
        np.testing.assert_allclose(shown[: len(expected), at].astype(float), expected)
        expected = relative[here].groupby(rows.loc[here, "step"]).mean()
        np.testing.assert_allclose(steps.lines[at].get_ydata(), expected)


def test_the_figure_of_responses_has_each_layer(recorded):
    figure, summary = recorded[1].plot(), recorded[1].summary()
    rows = summary[summary["branch"] == "cond"]
    entropy, response = figure.axes[0].lines
    np.testing.assert_allclose(entropy.get_ydata(), rows["entropy"])
    np.testing.assert_allclose(response.get_ydata(), rows["response"])


def test_the_figure_of_maps_has_each_word(recorded):
    maps = recorded[2]
    figure = maps.plot(picture=1, branch="uncond")
    cells = [axis for axis in figure.axes if axis.images and axis.get_title()]
    assert [axis.get_title().split("\n")[0] for axis in cells] == ["a", "b", "cd"]
    expected = maps.maps()[maps.branch_names.index("uncond"), 1]
    for word, axis in enumerate(cells):
        np.testing.assert_allclose(np.asarray(axis.images[0].get_array()), expected[word])
    over = maps.plot(Image.new("RGB", (48, 32)))
    assert [axis.get_title() for axis in over.axes if axis.get_title()] == ["image", "a", "b", "cd"]


def test_maps_of_steps_get_a_row_each():
    pipe, maps = make_text_pipe(), ea.MapRecorder(WORDS, steps=[0, 1])
    with apply(pipe, record=maps, scale=None):
        generate(pipe, [PROMPT])
    cells = [axis for axis in maps.plot().axes if axis.images]
    for (step, word), axis in zip(itertools.product((0, 1), range(3)), cells, strict=False):
        np.testing.assert_allclose(np.asarray(axis.images[0].get_array()), maps.heat_map(word, step=step))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"image": "fox.png"}, TypeError, "image: expected a PIL image or None, got 'fox.png'"),
        ({"image": torch.zeros(3, 4, 4)}, TypeError, "image: expected"),
        ({"picture": 2}, ValueError, "picture"),
        ({"branch": "all"}, ValueError, "branch: expected one of"),
    ],
)
def test_wrong_arguments_of_plot(recorded, options, error, said):
    with pytest.raises(error, match=said):
        recorded[2].plot(**options)


def test_handles_show_what_they_do():
    pipe, recorder = ea.shapes.load_pipeline(), ea.EntropyRecorder()
    handle = ea.apply(pipe, record=recorder)
    found = Reader(handle._repr_html_())
    rows = dict(found.rows[1:])
    assert rows["denoiser"] == "UNet2DConditionModel" and rows["scale"] == repr(ea.scale.LogN())
    assert rows["layers"] == "14 self or cross" and rows["recorders"] == "EntropyRecorder"
    assert found.text == "Handle\nrouting\n"
    handle.remove()
    assert Reader(handle._repr_html_()).text == "Handle\nremoved\n"


def test_a_guidance_shows_its_losses():
    pipe = ea.shapes.load_pipeline()
    with ea.attach(pipe, ea.guidance.TSAM(alpha=1.0, steps=(0, 1))) as handle:
        assert "nothing generated yet" in handle._repr_html_()
        pipe("a red circle", num_inference_steps=2, output_type="latent")
    found = Reader(handle._repr_html_())
    assert found.rows[0] == ["step", "loss of image 0"]
    assert found.rows[1:] == [[str(step), f"{float(loss):.4g}"] for step, loss in handle.losses]
    assert "removed" in found.text
