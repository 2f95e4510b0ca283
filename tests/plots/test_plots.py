"""The figures have the right files and the right numbers, and do not touch pyplot's global state."""

from __future__ import annotations

import dataclasses
import io
import math

import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("diffusers")

from entropy_attn import plots
from entropy_attn.plots.style import NOTEBOOK_DPI
from entropy_attn.profiling import changes, layer_means
from entropy_attn.scale import Constant, LogN, Power
from tests.support.figures import FIGURES


def _texts(figure):
    axes = figure.axes
    legends = [legend for axis in axes if (legend := axis.get_legend())] + figure.legends
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_every_figure_is_written_and_not_empty(invented, tmp_path):
    paths = plots.save_figures(invented, "shapes", tmp_path)
    assert set(paths) == FIGURES
    for path in paths.values():
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 300
            assert len(image.convert("RGB").resize((200, 200)).getcolors(maxcolors=40_000)) > 20


def test_a_notebook_shows_a_figure_without_pyplot(invented):
    figure = plots.entropy_against_tokens(layer_means(invented.entropy), "shapes")
    with Image.open(io.BytesIO(figure._repr_png_())) as image:
        assert image.format == "PNG"
        assert image.size == tuple(round(inches * NOTEBOOK_DPI) for inches in figure.get_size_inches())


def test_one_line_per_layer_and_the_spread_of_their_slopes(invented):
    figure = plots.entropy_against_tokens(layer_means(invented.entropy), "shapes")
    texts = _texts(figure)
    assert "slope of a layer: median 0.60,\nhalf of them 0.60 to 0.60" in texts
    assert "slope of a layer: median 0.50,\nhalf of them 0.50 to 0.50" in texts
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 5]
    assert len(drawn) == 5  # one for each of the five layers
    assert figure.axes[0].get_ylabel() == "mean entropy [nats]"
    assert "shapes" in figure.get_suptitle()


def test_distance_from_the_training_size(invented):
    table = changes(layer_means(invented.entropy), invented.plan)
    figure = plots.change_from_training(table, invented.plan, "shapes")
    axis = figure.axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()][2] == "64x64\n(training)"
    off, logn = axis.collections[0], axis.collections[2 * 5]  # dots and a bar for each size
    ends = [0.6 * math.log(32 * 32 / 64 / 64)] * 5
    assert off.get_offsets()[:, 1].tolist() == pytest.approx(ends, rel=1e-5)
    layer = table[(table["policy"] == "logn") & (table["size"] == "32x32")]
    assert logn.get_offsets()[:, 1].tolist() == pytest.approx(layer["change"].tolist())
    assert changes(layer_means(invented.entropy), invented.plan).query("policy == 'off' and size == '64x64'")[
        "change"
    ].tolist() == pytest.approx([0] * 5)
    invented.plan = dataclasses.replace(invented.plan, reference=(80, 80))
    assert plots.change_from_training(changes(layer_means(invented.entropy), invented.plan), invented.plan, "x") is None


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


def test_a_reference_that_was_not_run_is_omitted(invented):
    figure = plots.entropy_per_layer(layer_means(invented.entropy), "shapes", reference=(80, 80))
    assert _texts(figure) == ["off", "logn"]


def test_regimes_band_drift_and_factor(invented):
    table = invented.regimes
    figure = plots.layer_regimes(table, invented.plan, "shapes")
    ratio, share, factor = figure.axes
    rows = table[table["size"] == "128x128"]
    assert rows["regime"].tolist() == ["averaging", "one-hot", "one-hot", "responsive", "averaging"]
    band = next(patch for patch in ratio.patches)
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.4, 1.6))
    assert ratio.get_xscale() == "log" and len(ratio.collections) == 2  # at this size, and at the training size
    assert ratio.collections[0].get_offsets()[:, 0].tolist() == pytest.approx(rows["std_ratio"].tolist())
    drift, undone = share.containers
    assert [bar.get_width() for bar in drift] == pytest.approx([0.6 * math.log(4)] * 5)
    assert [bar.get_width() for bar in undone] == pytest.approx(
        rows["logn_factor"].map(math.log).tolist()
    )  # response 1
    measured = share.collections[0].get_offsets()[:, 0].tolist()
    assert measured == pytest.approx((rows["logn_measured"] * rows["drift"]).tolist())
    assert [dots.get_offsets()[0][0] for dots in factor.collections[:5]] == pytest.approx([2.0] * 5)  # bounded
    assert "bounded: not enough" in _texts(figure) and "128x128: LogN can undo" in figure._supxlabel.get_text()


def test_regimes_of_one_size_have_no_drift(invented):
    table = invented.regimes
    figure = plots.layer_regimes(table[table["size"] == "64x64"], invented.plan, "shapes")
    assert len(figure.axes) == 1 and figure._supxlabel.get_text() == "64x64: 1 of 5 layers is responsive"


def many_policies(invented, count):
    """The same profile under this many policies, each a tenth of a nat below the previous one."""
    policies = {
        "off": None,
        "logn:strength=0.5": LogN(strength=0.5),
        "power:p=0.25:clamp=0.8..1.5": Power(p=0.25),
        "constant:factor=1.1": Constant(1.1),
        "lognoroot:direction=up:clamp=0.9..1": LogN(strength=2),
    }
    chosen = dict(list(policies.items())[:count])

    def repeated(table):
        off = table[table["policy"] == "off"]
        lower = "mean" if "mean" in off else None
        parts = [off.assign(policy=name, **({lower: off[lower] - 0.1 * index} if lower else {}))
                 for index, name in enumerate(chosen)]  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    invented.plan = dataclasses.replace(invented.plan, policies=chosen)
    for name in ("entropy", "heads", "runs"):
        setattr(invented, name, repeated(getattr(invented, name)))
    of_off = {size: found for (size, policy, _), found in invented.pictures.items() if policy == "off"}
    invented.pictures = {(size, policy, 0): found for size, found in of_off.items() for policy in chosen}
    invented.maps = dict.fromkeys(chosen, invented.maps["off"])
    return invented


@pytest.mark.parametrize("count", range(1, 6))
def test_heads_of_any_number_of_policies(invented, count: int):
    figure = plots.head_heat_map(many_policies(invented, count).heads, "shapes")
    grids = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(grids) == 2 * count - 1 and {grid.shape for grid in grids} == {(4, 5)}
    titles = [axis.get_title() for axis in figure.axes]
    assert sum(title.startswith("scale: ") for title in titles) == count
    assert sum(title == "minus off" for title in titles) == count - 1
    lns = [math.log(tokens) for tokens in (1024, 256, 64, 256, 1024)]
    changed = [axis.images[0].get_array() for axis in figure.axes if axis.get_title() == "minus off"]
    for index, grid in enumerate(changed, start=1):
        assert grid[0].tolist() == pytest.approx([-0.1 * index / ln for ln in lns], abs=1e-4)


@pytest.mark.parametrize("count", [2, 5])
def test_names_of_rows_do_not_overlap(invented, count: int):
    result = many_policies(invented, count)
    for figure in (plots.contact_sheet(result, "shapes"), plots.entropy_maps(result, "shapes")):
        figure.canvas.draw()
        boxes = [axis.yaxis.label.get_window_extent() for axis in figure.axes if axis.yaxis.label.get_text()]
        assert len(boxes) >= count
        for number, box in enumerate(boxes):
            assert box.x0 >= 0 and not any(box.overlaps(other) for other in boxes[:number])


def test_steps_count_from_0_with_the_policies_in_one_panel(invented):
    figure = plots.entropy_against_step(invented.entropy, "shapes")
    assert [axis.get_title() for axis in figure.axes] == ["32x32 px", "48x48 px", "64x64 px", "96x96 px", "128x128 px"]
    for axis in figure.axes:
        assert [line.get_label() for line in axis.lines] == ["off", "logn"]
        assert axis.lines[0].get_xdata().tolist() == [0, 1, 2, 3]


def test_layers_with_different_head_counts_leave_blanks(invented):
    table = invented.heads
    few = table["layer"].str.startswith("down_blocks.0") & (table["head"] > 1)
    figure = plots.head_heat_map(table[~few], "shapes")
    grid = figure.axes[0].images[0].get_array()
    assert grid.shape == (4, 5) and grid.mask[2:, 0].all() and not grid.mask[:, 1:].any()


def test_one_policy_and_one_size_still_draw(invented, tmp_path):
    chosen = "policy == 'off' and size == '128x128'"
    invented.heads = invented.heads.query(chosen)
    invented.plan = type(invented.plan)([(128, 128)], {"off": None}, invented.plan.prompts, reference=(64, 64))
    invented.entropy = invented.entropy.query("policy == 'off' and size == '128x128'").reset_index(drop=True)
    invented.maps = {"off": invented.maps["off"]}
    assert set(plots.save_figures(invented, "shapes", tmp_path)) == FIGURES - {"entropy_vs_training"}


def test_many_layers_get_a_color_bar_instead_of_a_legend(invented):
    means = layer_means(invented.entropy)
    many = [means.assign(layer=means["layer"].str.replace("blocks.0", f"blocks.{i}")) for i in range(6)]
    figure = plots.entropy_against_tokens(pd.concat(many), "big")
    assert not figure.legends
    assert figure.axes[-1].get_ylabel() == "layer, in the order of the forward pass"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1", "down0.1.0"),
        ("mid_block.attentions.0.transformer_blocks.3.attn1", "mid.0.3"),
        ("unet.up_blocks.2.attentions.0.transformer_blocks.0.attn2", "up2.0.0.attn2"),
        ("down_blocks.1.attentions.0", "down1.0"),
        ("transformer_blocks.12.attn", "block12.attn"),
        ("transformer_blocks.12.attn2", "block12.attn2"),
        ("single_transformer_blocks.12.attn", "single12.attn"),
        ("blocks.3.attn1", "block3.attn1"),
        ("layers.3.attention", "layer3.attention"),
        ("something.else", "something.else"),
    ],
)
def test_layer_labels(name, label):
    assert plots.layer_label(name) == label


def test_side_by_side_enlarges_small_images_and_wraps_a_long_prompt():
    images = [Image.new("RGB", (64, 32), color) for color in ("red", "blue")]
    short = plots.side_by_side(images, ["original", "ours"], title="two")
    long = plots.side_by_side(images, ["original", "ours"], title="a very long prompt " * 10)
    assert short.width == long.width >= 2 * 320
    assert long.height > short.height
    colors = {color for _, color in short.getcolors(maxcolors=100_000)}
    assert {(255, 0, 0), (0, 0, 255)} <= colors
