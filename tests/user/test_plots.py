"""The figures: right files, right numbers, and nothing of pyplot's global state touched."""

from __future__ import annotations

import math

import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("diffusers")

from entropy_attn import plots
from entropy_attn.profile import layer_means

FIGURES = {"entropy_vs_tokens", "entropy_per_layer", "entropy_heads", "entropy_vs_step", "entropy_map", "pictures"}


def _texts(figure):
    axes = figure.axes
    legends = [legend for axis in axes if (legend := axis.get_legend())] + figure.legends
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_every_figure_is_written_and_has_something_drawn(invented, tmp_path):
    paths = plots.save_figures(invented, "shapes", tmp_path)
    assert set(paths) == FIGURES
    for path in paths.values():
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
            assert len(picture.convert("RGB").resize((200, 200)).getcolors(maxcolors=40_000)) > 20


def test_fit_is_quoted_with_slope_and_r2(invented):
    figure = plots.entropy_against_tokens(layer_means(invented.entropy), "shapes")
    texts = _texts(figure)
    assert "slope 0.600, R² 1.000" in texts and "slope 0.500, R² 1.000" in texts
    assert figure.axes[0].get_ylabel() == "mean entropy [nats]"
    assert "shapes" in figure.get_suptitle()


def test_per_layer_shows_small_and_large_and_the_training_size(invented):
    figure = plots.entropy_per_layer(layer_means(invented.entropy), "shapes", reference=(64, 64))
    assert [axis.get_title() for axis in figure.axes] == ["32x32 px", "128x128 px", "", ""]
    assert _texts(figure) == ["off, 64x64 px", "off", "logn"]
    for axis in figure.axes[:2]:
        top = max(line.get_ydata().max() for line in axis.lines)
        assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > top
    changes = [bar.get_height() for bar in figure.axes[3].patches]
    expected = [-0.1 * math.log(tokens) + 0.4 for tokens in (1024, 256, 64, 256, 1024)]
    assert changes == pytest.approx(expected)


def test_a_reference_that_was_not_run_is_left_out(invented):
    figure = plots.entropy_per_layer(layer_means(invented.entropy), "shapes", reference=(80, 80))
    assert _texts(figure) == ["off", "logn"]


def test_heads_show_the_change_between_policies(invented):
    figure = plots.head_heat_map(invented.entropy, "shapes")
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["scale: off", "scale: logn", "logn - off"]
    assert figure.axes[0].images[0].get_array().shape == (4, 5)


def test_layers_with_different_head_counts_leave_blanks(invented):
    table = invented.entropy
    few = table["layer"].str.startswith("down_blocks.0") & (table["head"] > 1)
    figure = plots.head_heat_map(table[~few], "shapes")
    grid = figure.axes[0].images[0].get_array()
    assert grid.shape == (4, 5) and grid.mask[2:, 0].all() and not grid.mask[:, 1:].any()


def test_one_policy_and_one_size_still_draw(invented, tmp_path):
    invented.plan = type(invented.plan)([(128, 128)], {"off": None}, invented.plan.prompts)
    invented.entropy = invented.entropy.query("policy == 'off' and size == '128x128'").reset_index(drop=True)
    invented.maps = {"off": invented.maps["off"]}
    assert set(plots.save_figures(invented, "shapes", tmp_path)) == FIGURES


def test_many_layers_get_a_colour_bar_instead_of_a_legend(invented):
    means = layer_means(invented.entropy)
    many = [means.assign(layer=means["layer"].str.replace("blocks.0", f"blocks.{i}")) for i in range(6)]
    import pandas as pd

    figure = plots.entropy_against_tokens(pd.concat(many), "big")
    assert not figure.legends
    assert figure.axes[-1].get_ylabel() == "layer, in the order of the forward pass"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1", "down0.1"),
        ("mid_block.attentions.0.transformer_blocks.3.attn1", "mid.0.3"),
        ("unet.up_blocks.2.attentions.0.transformer_blocks.0.attn1", "up2.0"),
        ("something.else", "something.else"),
    ],
)
def test_layer_labels(name, label):
    assert plots.layer_label(name) == label


def test_side_by_side_enlarges_small_pictures_and_wraps_a_long_prompt():
    pictures = [Image.new("RGB", (64, 32), colour) for colour in ("red", "blue")]
    short = plots.side_by_side(pictures, ["original", "ours"], title="two")
    long = plots.side_by_side(pictures, ["original", "ours"], title="a very long prompt " * 10)
    assert short.width == long.width >= 2 * 320
    assert long.height > short.height
    colours = {colour for _, colour in short.getcolors(maxcolors=100_000)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
