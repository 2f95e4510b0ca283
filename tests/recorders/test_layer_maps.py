"""Maps by layer and head, in any direction, against the whole softmax in float64 of the calls of the plain model."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import entropy_attn as ea
from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers import apply
from entropy_attn.plots.layer_maps import layer_sheet
from entropy_attn.recorders.base import Probabilities, Tokens
from entropy_attn.recorders.layer_maps import LayerMapRecorder
from entropy_attn.recorders.maps import MapRecorder
from entropy_attn.routing.calls import AttentionArguments, DenoiserCall, LayerCall
from entropy_attn.routing.recordings import Recordings
from entropy_attn.scale import CallInfo, Fixed, KeyGroups
from tests.recorders.test_joint_maps import FLUX, SD3, STEPS, generate
from tests.support.tiny_denoisers import CASES
from tests.support.tiny_models import Spy, make_text_pipe

NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
BOX = (0.25, 0.0, 1.0, 0.5)  # left, top, right, bottom
POINT = (0.3, 0.9)


class Whole(TorchFunctionMode):
    """The probabilities (B, H, Nq, Nk) of every attention call, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(NAMES, args, strict=False)) | (kwargs or {})
            query, key, mask = given["query"].double(), given["key"].double(), given.get("attn_mask")
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            logits = query @ key.mT * (given.get("scale") or query.shape[-1] ** -0.5)
            if mask is not None:
                logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
            self.calls.append(logits.softmax(-1))
        return func(*args, **(kwargs or {}))


@functools.cache
def denoiser_of(name: str) -> Any:
    return CASES[name].make()


@torch.no_grad()
def run(name: str, size: tuple[int, int], **changes: Any) -> None:
    denoiser_of(name)(**{**CASES[name].call(*size), **changes}, return_dict=False)


@functools.cache
def whole(name: str, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """{layer: its probabilities} of the plain model."""
    spy = Spy()
    with apply(denoiser_of(name), scale=spy, layers="all", train_size=CASES[name].train_size):
        run(name, size)
    with Whole() as seen:
        run(name, size)
    calls = seen.calls[CASES[name].outside :]
    return dict(zip([info.layer for info in spy.calls], calls, strict=True))


def routed(name: str, size: tuple[int, int], *recorders: LayerMapRecorder, **options: Any) -> None:
    given = {"scale": None, "train_size": CASES[name].train_size, **options}
    with apply(denoiser_of(name), record=list(recorders), **given):
        run(name, size)


def parts(name: str, size: tuple[int, int], layer: str) -> tuple[Any, slice, slice]:
    """What the case states of a layer, and where its image and its text are."""
    found = next(each for each in CASES[name].layers(*size) if re.search(each.pattern, layer))
    text = found.text
    image = found.image and whole(name, size)[layer].shape[-1] - text
    if found.kind == "joint" and found.order == "first":
        return found, slice(text, text + image), slice(0, text)
    return found, slice(0, image), slice(image, image + text) if found.kind == "joint" else slice(0, text)


def on(grid: tuple[int, int], matrix: torch.Tensor) -> torch.Tensor:
    """(B, H, G, places) as the recorder has it for one image: (head, group, row, column)."""
    return matrix.unflatten(-1, grid).float()


def assert_maps(recorder: LayerMapRecorder, expected: dict[str, torch.Tensor]) -> None:
    """expected: {layer: (image, head, group, row, column)}."""
    assert recorder.layers == tuple(expected)
    for image in range(len(next(iter(expected.values())))):
        found = recorder.maps(image)
        assert tuple(found) == tuple(expected)
        for layer, maps in found.items():
            assert maps.dtype == torch.float32 and maps.device.type == "cpu"
            torch.testing.assert_close(maps, expected[layer][image], rtol=1e-4, atol=1e-6)


# The image of Z-Image is padded to a multiple of 32 tokens. Lumina 2 is tested by itself.
JOINT = {
    "sd3": (12, 8), "flux": (12, 8), "flux2": (12, 8), "chroma": (12, 8), "qwen": (12, 8), "zimage": (16, 16),
    "auraflow": (12, 8), "cogview4": (12, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", JOINT)
def test_every_joint_model(name: str):
    size = JOINT[name]
    grid = size[0] // 2, size[1] // 2
    words, heads = (4, 1), (1,)  # the positions are kept in their order, and apart from what is between
    from_text = LayerMapRecorder(words, "image")
    to_text = LayerMapRecorder("image", words, heads=heads)
    places = LayerMapRecorder([POINT, BOX], "image", heads="each")
    into = LayerMapRecorder("image", [BOX], heads="each")
    received = LayerMapRecorder("image", "image")
    routed(name, size, from_text, to_text, places, into, received)
    matrices = whole(name, size)
    inside = torch.zeros(grid)
    inside[: grid[0] // 2, grid[1] // 4 :] = 1
    point = torch.zeros(grid)
    point[int(0.9 * grid[0]), int(0.3 * grid[1])] = 1
    weights = torch.stack([point.flatten(), inside.flatten() / inside.sum()]).double()
    joint, all_layers = {}, {}
    for layer, matrix in matrices.items():
        stated, image, text = parts(name, size, layer)
        if stated.kind == "joint":
            joint[layer] = matrix, image, text
        if stated.image:
            all_layers[layer] = matrix, image
    assert joint and from_text.labels() == ("4", "1")
    assert_maps(
        from_text,
        {
            layer: on(grid, matrix[:, :, text][:, :, list(words)][..., image].mean(1, keepdim=True))
            for layer, (matrix, image, text) in joint.items()
        },
    )
    assert_maps(
        to_text,
        {
            layer: on(grid, matrix[:, list(heads), image][..., text][..., list(words)].mT)
            for layer, (matrix, image, text) in joint.items()
        },
    )
    assert_maps(
        places,
        {layer: on(grid, weights @ matrix[:, :, image][..., image]) for layer, (matrix, image) in all_layers.items()},
    )
    assert_maps(
        into,
        {
            layer: on(grid, (matrix[:, :, image][..., image] @ weights[1:].mT).mT)
            for layer, (matrix, image) in all_layers.items()
        },
    )
    assert_maps(
        received,
        {
            layer: on(grid, matrix[:, :, image][..., image].mean(1, keepdim=True).sum(2, keepdim=True))
            for layer, (matrix, image) in all_layers.items()
        },
    )


@pytest.mark.parametrize("lengths", [(6, 6), (6, 4)])
def test_lumina2(lengths: tuple[int, int]):
    """The image follows the text of its sample. Without a mask all texts have the same length."""
    size, grid = (12, 8), (6, 4)
    options = {"encoder_attention_mask": torch.arange(6) < torch.tensor(lengths)[:, None]}
    recorders = (
        LayerMapRecorder((4, 1), "image"),
        LayerMapRecorder("image", (4, 1), heads=(1,)),
        LayerMapRecorder([BOX], "image", layers="^layers", heads="each"),
        LayerMapRecorder("image", "image", layers="^layers"),
    )
    with Whole() as seen:
        run("lumina2", size, **options)
    with apply(denoiser_of("lumina2"), scale=None, record=recorders):
        run("lumina2", size, **options)
    joint = [each for each in seen.calls if each.shape[-1] == 24 + 6]
    assert len(joint) == 2 and {recorder.layers for recorder in recorders} == {("layers.0.attn", "layers.1.attn")}
    box = torch.zeros(grid, dtype=torch.float64)
    box[:3, 1:] = 1 / 9
    for number, layer in enumerate(recorders[0].layers):
        for sample, length in enumerate(lengths):
            matrix, image = joint[number][sample], slice(length, length + 24)
            expected = [
                on(grid, matrix[:, [4, 1], image].mean(0, keepdim=True)),
                on(grid, matrix[1:, image, :][..., [4, 1]].mT),
                on(grid, box.flatten() @ matrix[:, image, image]).unsqueeze(1),
                on(grid, matrix[:, image, image].mean(0, keepdim=True).sum(1, keepdim=True)),
            ]
            for recorder, maps in zip(recorders, expected, strict=True):
                found = recorder.maps(sample)[layer]
                if length == 4 and recorder.labels() == ("4", "1"):  # position 4 is none of this text
                    assert found[:, 0].isnan().all()
                    found, maps = found[:, 1:], maps[:, 1:]
                torch.testing.assert_close(found, maps, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("setting", [FLUX, SD3], ids=["flux", "sd3"])
def test_words_and_branches_of_a_pipeline(setting: tuple):
    """The mean over steps, or steps apart; the branch of the prompt, wherever it is in the batch."""
    make, options, grid, text, order = setting
    with Whole() as seen:
        generate(make(), "ab c", options)
    image = slice(text, None) if order == "first" else slice(0, math.prod(grid))
    words = slice(0, text) if order == "first" else slice(math.prod(grid), None)
    calls = [call for call in seen.calls if call.shape[-1] == math.prod(grid) + text]
    positions = [0, 1] if order == "first" else [1, 2, 7, 8]  # of "ab": T5's alone, or CLIP's and T5's
    mean, apart = LayerMapRecorder(("ab",), "image"), LayerMapRecorder(("ab",), "image", steps=[1], all_branches=True)
    pipe, matching = make(), MapRecorder("ab")
    by_layer = LayerMapRecorder("image", "ab")
    with apply(pipe, scale=None, record=[mean, apart, by_layer, matching]):
        generate(pipe, "ab c", options)
    layers = len(calls) // STEPS
    assert mean.branch_names == (("cond",) if order == "last" else ("all",)) and mean.labels() == ("ab",)
    of_step = [
        torch.stack([call[:, :, words][:, :, positions][..., image].mean((1, 2)) for call in calls[at::layers]])
        for at in range(layers)
    ]
    for layer, expected in zip(mean.layers, of_step, strict=True):
        found, last = mean.maps()[layer], apart.maps(step=1)[layer]
        torch.testing.assert_close(found[0, 0].flatten(), expected.mean(0)[-1].float(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(last[0, 0].flatten(), expected[1][-1].float(), rtol=1e-4, atol=1e-6)
    if order == "last":
        assert apart.branch_names == ("uncond", "cond")
        other = apart.maps(branch="uncond")[mean.layers[0]]
        torch.testing.assert_close(other[0, 0].flatten(), of_step[0][1][0].float(), rtol=1e-4, atol=1e-6)
    # The mean over the layers of the maps to the words is that of MapRecorder.
    stacked = torch.stack(list(by_layer.maps().values())).mean(0)[0]
    torch.testing.assert_close(stacked, matching.maps()[0, 0], rtol=1e-4, atol=1e-6)


def test_prompts_of_a_batch_have_the_word_at_different_positions():
    make, options, grid, text, _ = SD3
    prompts, image = ["c", "ab c"], slice(0, math.prod(grid))
    with Whole() as seen:
        generate(make(), prompts, options)
    calls = [call for call in seen.calls if call.shape[-1] == math.prod(grid) + text]
    pipe, recorder, every = make(), LayerMapRecorder("c", "image"), LayerMapRecorder("text", "image")
    with apply(pipe, scale=None, record=[recorder, every]):
        generate(pipe, prompts, options)
    for number, positions in enumerate([(1, 7), (3, 9)]):
        words = [math.prod(grid) + position for position in positions]
        for at, layer in enumerate(recorder.layers):
            mean = torch.stack([call[2 + number, :, words][..., image].mean((0, 1)) for call in calls[at::2]]).mean(0)
            found = recorder.maps(number)[layer][0, 0]
            torch.testing.assert_close(found, mean.unflatten(0, grid).float(), rtol=1e-4, atol=1e-6)
    assert every.labels(0) == ("c",) * 2 and every.labels(1) == ("a", "b", "c") * 2
    assert every.maps(1)[every.layers[0]].shape == (1, 6, *grid)
    with pytest.raises(ValueError, match="the prompts have different numbers of words"):
        every.save("maps.npz")


def test_queries_of_the_image_alone():
    """The keys of DeepFloyd IF are text and image, the text first; its queries are of the image."""
    size = CASES["if"].sizes[0]
    to_text, received, from_text = (
        LayerMapRecorder(*ask) for ask in (("image", (4, 1)), ("image",) * 2, ((1,), "image"))
    )
    routed("if", size, to_text, received)
    assert to_text.layers == received.layers
    for layer, matrix in whole("if", size).items():
        queries, keys = matrix.shape[-2:]
        grid = received.maps()[layer].shape[-2:]
        expected = matrix[:, :, :, [4, 1]].mean(1, keepdim=True).mT
        torch.testing.assert_close(to_text.maps(1)[layer], on(grid, expected)[1], rtol=1e-4, atol=1e-6)
        expected = matrix[..., keys - queries :].mean(1, keepdim=True).sum(2, keepdim=True)
        torch.testing.assert_close(received.maps(1)[layer], on(grid, expected)[1], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="it has no rows of text, which is attended to and does not attend"):
        routed("if", size, from_text)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_scale_for_the_rows_of_the_image_alone(name: str):
    """rows="image" splits the call in two: the rows of text keep the default scale."""
    size, grid, scale = JOINT[name], (6, 4), 0.7
    from_text, places = LayerMapRecorder((2, 0), "image"), LayerMapRecorder([BOX], "image")
    pattern = r"^transformer_blocks\.0\.attn$"  # the first, whose queries and keys the scale does not change
    routed(name, size, from_text, places, scale=Fixed(scale), layers=pattern, rows="image")
    layer = "transformer_blocks.0.attn"
    matrix = whole(name, size)[layer]
    _, image, text = parts(name, size, layer)
    expected = on(grid, matrix[:, :, text][:, :, [2, 0]][..., image].mean(1, keepdim=True))
    torch.testing.assert_close(from_text.maps(1)[layer], expected[1], rtol=1e-4, atol=1e-6)
    logits = matrix.log() * scale / 16**-0.5
    box = torch.zeros(grid)
    box[:3, 1:] = 1 / 9
    scaled = (box.flatten().double() @ logits.softmax(-1)[:, :, image][..., image]).mean(1)
    torch.testing.assert_close(places.maps(1)[layer][0, 0], on(grid, scaled)[1], rtol=1e-4, atol=1e-6)


class Groups:
    """A factor for the keys of text in the rows of the image, and a bias of them."""

    gives_key_groups = True

    def __call__(self, info: CallInfo) -> KeyGroups:
        return KeyGroups(key_scale=[(info.text_keys, 1.5)], key_bias=[(info.text_keys, 0.5)], key_rows=info.image_rows)


def test_maps_are_of_the_key_groups_of_a_policy():
    size, grid, layer = JOINT["flux"], (6, 4), "transformer_blocks.0.attn"
    from_text, to_text = LayerMapRecorder((2,), "image"), LayerMapRecorder("image", (2, 3), heads="each")
    routed("flux", size, from_text, to_text, scale=Groups(), layers=rf"^{re.escape(layer)}$")
    matrix = whole("flux", size)[layer]
    _, image, text = parts("flux", size, layer)
    plain = on(grid, matrix[:, :, text][:, :, [2]][..., image].mean(1, keepdim=True))
    torch.testing.assert_close(from_text.maps()[layer], plain[0], rtol=1e-4, atol=1e-6)  # not its rows
    with Whole() as seen:  # log P is the logits without a constant of the row, which a factor would multiply
        run("flux", size)
    assert torch.equal(seen.calls[0], matrix)
    logits = logits_of_first_call("flux", size)
    logits[:, :, image, text] = logits[:, :, image, text] * 1.5 + 0.5
    expected = on(grid, logits.softmax(-1)[:, :, image][..., text][..., [2, 3]].mT)
    torch.testing.assert_close(to_text.maps()[layer], expected[0], rtol=1e-4, atol=1e-6)


def logits_of_first_call(name: str, size: tuple[int, int]) -> torch.Tensor:
    found = []

    class First(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            if func is F.scaled_dot_product_attention:
                given = dict(zip(NAMES, args, strict=False)) | (kwargs or {})
                found.append(given["query"].double() @ given["key"].double().mT * given["query"].shape[-1] ** -0.5)
            return func(*args, **(kwargs or {}))

    with First():
        run(name, size)
    return found[0]


def test_reference_images_are_no_part_of_rows_and_maps():
    """The tokens of reference images come last; the probabilities are normalized over them too."""
    net, count, text = denoiser_of("flux"), 24, 6
    rows = torch.arange(count) // 4
    image_ids = torch.stack([0 * rows, rows, torch.arange(count) % 4], 1).float()
    generator = torch.Generator().manual_seed(0)
    call = {
        **CASES["flux"].call(12, 8),
        "hidden_states": torch.randn(2, 2 * count, 8, generator=generator),
        "img_ids": torch.cat([image_ids, image_ids + torch.tensor([1.0, 0.0, 0.0])]),
    }
    from_text, received = LayerMapRecorder((3,), "image"), LayerMapRecorder("image", "image")
    with torch.no_grad(), Whole() as seen:
        net(**call)
    with torch.no_grad(), apply(net, scale=None, record=[from_text, received], train_size=(12, 8)):
        net(**call)
    picture = slice(text, text + count)
    for layer, matrix in zip(from_text.layers, seen.calls, strict=True):
        expected = on((6, 4), matrix[:, :, 3:4, picture].mean(1, keepdim=True))
        torch.testing.assert_close(from_text.maps(1)[layer], expected[1], rtol=1e-4, atol=1e-6)
        expected = on((6, 4), matrix[:, :, picture, picture].mean(1, keepdim=True).sum(2, keepdim=True))
        torch.testing.assert_close(received.maps(1)[layer], expected[1], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def unet_recorders() -> dict[str, LayerMapRecorder]:
    """Two images of one generation, 32 x 48 pixels."""
    found = {
        "places": LayerMapRecorder([POINT, BOX, torch.eye(4)], "image", heads=(1, 0), layers="attn1$"),
        "words": LayerMapRecorder("image", "text"),
        "apart": LayerMapRecorder("image", ("b",), steps=(0, 1), all_branches=True),
    }
    pipe = make_text_pipe()
    with apply(pipe, scale=None, record=list(found.values())):
        generate(pipe, ["a b cd"] * 2, {"height": 32, "width": 48})
    return found


def test_self_attention_of_a_unet(unet_recorders):
    """Layers of different sizes, each in its own grid; every row of self-attention has the sum 1."""
    recorder = unet_recorders["places"]
    assert recorder.labels() == ("(0.3, 0.9)", "(0.25, 0, 1, 0.5)", "mask 0") and recorder.branch_names == ("cond",)
    shapes = {tuple(maps.shape) for maps in recorder.maps(1).values()}
    assert shapes == {(2, 3, 16, 24), (2, 3, 8, 12)} and all(layer.endswith("attn1") for layer in recorder.layers)
    for maps in recorder.maps().values():
        torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(2, 3), rtol=1e-4, atol=1e-5)


def test_cross_attention_of_a_unet(unet_recorders):
    recorder = unet_recorders["words"]
    assert recorder.labels() == ("a", "b", "c", "d") and all(layer.endswith("attn2") for layer in recorder.layers)
    matching = MapRecorder(size=(8, 12))
    pipe = make_text_pipe()
    with apply(pipe, scale=None, record=matching):
        generate(pipe, ["a b cd"] * 2, {"height": 32, "width": 48})
    of_size = [maps for maps in recorder.maps(1).values() if maps.shape[-2:] == (8, 12)]
    torch.testing.assert_close(torch.stack(of_size).mean(0)[0], matching.maps()[0, 1], rtol=1e-4, atol=1e-6)


def test_files(unet_recorders, tmp_path):
    recorder = unet_recorders["places"]
    arrays = np.load(recorder.save(tmp_path / "maps.npz"))
    assert arrays["heads"].tolist() == [1, 0] and arrays["branches"].tolist() == ["cond"]
    assert tuple(arrays["tokens"][1]) == recorder.labels(1)
    for layer, maps in recorder.maps(1).items():
        assert np.array_equal(arrays[layer][0, 1], maps.numpy())
    apart = unet_recorders["apart"]
    table = pd.read_csv(apart.save(tmp_path / "maps.csv"))
    assert (
        set(table["head"]) == {"mean"} and set(table["step"]) == {0, 1} and set(table["branch"]) == {"uncond", "cond"}
    )
    layer = apart.layers[2]
    rows = table[(table["layer"] == layer) & (table["step"] == 1) & (table["branch"] == "uncond")]
    rows = rows[rows["picture"] == 1].sort_values(["row", "column"])
    maps = apart.maps(1, step=1, branch="uncond")[layer]
    assert np.allclose(rows["attention"], maps.flatten(), rtol=1e-6)
    held = apart._sums.pop((layer, 1, "uncond"))  # as if guidance had been off at this step
    assert apart.maps(1, step=1, branch="uncond")[layer].isnan().all()
    apart._sums[layer, 1, "uncond"] = held
    stacked = np.load(apart.save(tmp_path / "steps.npz"))
    assert stacked["steps"].tolist() == [0, 1]
    assert np.array_equal(stacked[layer][1, 0, 1], maps.numpy())


def test_summary_and_html(unet_recorders):
    recorder = unet_recorders["places"]
    summary = recorder.summary()
    assert len(summary) == len(recorder.layers) * 2 * 2 * 3 and set(summary["head"]) == {0, 1}
    row = summary[(summary["picture"] == 1) & (summary["head"] == 0) & (summary["token"] == "(0.3, 0.9)")].iloc[0]
    values = recorder.maps(1)[row["layer"]][1, 0]
    assert row["max"] == pytest.approx(float(values.max())) and row["mean"] == pytest.approx(float(values.mean()))
    assert values[row["row"], row["column"]] == values.max()
    html = recorder._repr_html_()
    assert html.count("<img") == len(recorder.layers) * 6 and "image 0 of 2" in html
    assert "nothing recorded" in LayerMapRecorder("image", "image")._repr_html_()


def test_the_figure_has_a_row_for_each_layer(unet_recorders):
    from PIL import Image

    recorder = unet_recorders["places"]
    for image, columns in ((None, 3), (Image.new("RGB", (48, 32)), 4)):
        figure = recorder.plot(image, layers="up_blocks")
        cells = [axis for axis in figure.axes if axis.images]
        layers = [layer for layer in recorder.layers if "up_blocks" in layer]
        assert len(cells) == 3 * len(layers) + columns - 3
        texts = [text.get_text() for axis in figure.axes for text in axis.texts]
        highest = recorder.maps()[layers[0]].mean(0)[0].max()
        assert f"highest {float(highest):.2g}" in texts
    with pytest.raises(ValueError, match="layers='nothing': matches none of the recorded layers, down"):
        recorder.plot(layers="nothing")
    with pytest.raises(TypeError, match="image: expected a PIL image or None"):
        recorder.plot("image.png")
    with pytest.raises(ValueError, match="expected at least one of each"):
        layer_sheet({}, ["a"], "nothing")
    with pytest.raises(ValueError, match=r"layers\['a'\]: expected shape \(2, h, w\), got \(1, 4, 4\)"):
        layer_sheet({"a": torch.rand(1, 4, 4)}, ["x", "y"], "too few")


def test_a_second_generation_and_reset():
    pipe, recorder = make_text_pipe(), LayerMapRecorder([POINT], "image", layers="mid")
    options = {"height": 32, "width": 48}
    with pytest.raises(ValueError, match="no attention was recorded: run the pipeline"):
        recorder.maps()
    with apply(pipe, scale=None, record=recorder):
        generate(pipe, "a b", options)
        first = next(iter(recorder.maps().values())).clone()
        generate(pipe, "a b", options)
        torch.testing.assert_close(next(iter(recorder.maps().values())), first)  # the mean of two equal ones
        with pytest.raises(ValueError, match=r"holds the maps of the prompt 'a b': reset\(\) it"):
            generate(pipe, "a c", options)
        with pytest.raises(ValueError, match="holds maps from latents of"):
            generate(pipe, "a b", {"height": 48, "width": 48})
        recorder.reset()
        generate(pipe, "a c", options)
    for arguments, message in (
        ({"picture": 1}, "picture: expected an integer from 0 to 0, got 1"),
        ({"step": 0}, "step=0: steps were not kept apart"),
        ({"branch": "uncond"}, r"branch: expected one of \('cond',\)"),
    ):
        with pytest.raises(ValueError, match=message):
            recorder.maps(**arguments)


@pytest.mark.parametrize(
    ("rows", "keys", "options", "message"),
    [
        (("a",), "image", {}, r"rows=\('a',\), keys='image': no layer has both: .* it has no rows of text"),
        ("image", "image", {"heads": (0, 9)}, r"heads: layer 'down.* has the heads 0 to 3, got \(0, 9\)"),
        ("image", "image", {"layers": "transformer9"}, "layers='transformer9': matches none of the layers"),
        ("image", ("f",), {}, "keys: 'f' is not in the prompt 'a b'"),
        ("image", (900,), {}, "keys: position 900 is not in the text"),
        ([torch.nn.functional.pad(torch.ones(1, 1), (0, 600, 0, 600))], "image", {}, r"a mask of shape \(601, 601\)"),
    ],
)
def test_what_no_layer_has_is_refused_at_the_first_call(rows: Any, keys: Any, options: dict, message: str):
    pipe, recorder, steps = make_text_pipe(), LayerMapRecorder(rows, keys, **options), []
    pipe.unet.register_forward_hook(lambda *_: steps.append(1))
    with apply(pipe, scale=None, record=recorder), pytest.raises(ValueError, match=message):
        generate(pipe, "a b", {"height": 32, "width": 48})
    assert len(steps) <= 1


def test_words_at_unknown_positions_and_video_are_refused():
    with pytest.raises(ValueError, match=r"rows=\('c',\): words need the pipeline's tokenizer; .* as in rows=\(2, 5\)"):
        apply(denoiser_of("qwen"), scale=None, record=LayerMapRecorder(("c",), "image"), train_size=16)
    case = CASES["cogvideox"]
    with (
        apply(denoiser_of("cogvideox"), scale=None, record=LayerMapRecorder((1,), "image")),
        pytest.raises(ValueError, match=r"keys are no image for latents .* and in video"),
    ):
        run("cogvideox", case.sizes[0])


def test_tokens_that_are_spread_over_devices_are_refused():
    info = CallInfo("a", "joint", 12, 12, 2, 8, text_tokens=6, text="first")
    request = Probabilities(Tokens("text", (1,)), Tokens("image"))
    recorder, tensor = LayerMapRecorder((1,), "image"), torch.zeros(1, 2, 6, 8)
    call = LayerCall("a", "joint", "first")
    spread: Any = object()  # decided before anything is asked of it
    recordings = Recordings(call, info, DenoiserCall(0, (2, 3), batch=1), True, (), spread, ((recorder, request),))
    with pytest.raises(Unroutable, match="LayerMapRecorder: its queries and keys are spread over devices"):
        recordings.check(AttentionArguments(tensor, tensor, tensor))


def test_gradient_checkpointing():
    net, recorder, expected = CASES["flux"].make(), LayerMapRecorder((2,), "image"), LayerMapRecorder((2,), "image")
    routed("flux", (12, 8), expected)
    with apply(net, scale=None, record=recorder, train_size=(12, 8)):
        net.train().enable_gradient_checkpointing()
        net(**CASES["flux"].call(12, 8), return_dict=False)[0].square().sum().backward()
    for layer, maps in recorder.maps(1).items():
        torch.testing.assert_close(maps, expected.maps(1)[layer], rtol=1e-4, atol=1e-6)
    assert {sums.calls for sums in recorder._sums.values()} == {1}  # what is computed anew is not recorded


def test_a_place_looks_at_its_own_object():
    """In the last layer of the embedded model: a place on the circle at the circle, one on the square at the square."""
    pipe = ea.shapes.load_pipeline()
    recorder = LayerMapRecorder([(0.8, 0.25), (0.3, 0.69)], "image", layers=r"up_blocks\.2\.attentions\.1")
    with apply(pipe, scale=None, record=recorder):
        pipe(
            "a red circle and a blue square", num_inference_steps=10, output_type="latent",
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
    ((layer, maps),) = recorder.maps().items()
    assert layer.endswith("attn1") and maps.shape == (1, 2, 16, 16)
    circle, square = maps[0, :, 2:6, 11:15].mean((-2, -1)), maps[0, :, 8:14, 2:8].mean((-2, -1))
    assert circle[0] > 2 * square[0] and square[1] > 2 * circle[1]


@pytest.mark.parametrize("rows", ["all", "image"])
def test_the_output_and_its_gradient_are_those_without_the_recorder(rows: str):
    net = denoiser_of("flux")
    results = []
    for recorders in ([MapRecorder((1,))], [MapRecorder((1,)), LayerMapRecorder((2,), "image")]):
        call = CASES["flux"].call(12, 8)
        call["hidden_states"] = call["hidden_states"].clone().requires_grad_()
        with apply(net, scale=Fixed(), record=recorders, rows=rows, train_size=(12, 8)):
            output = net(**call, return_dict=False)[0]
        (gradient,) = torch.autograd.grad(output.square().sum(), call["hidden_states"])
        results.append((output.detach(), gradient, recorders[0].maps()))
    for plain, watched in zip(*results, strict=True):
        torch.testing.assert_close(watched, plain, rtol=1e-4, atol=1e-6)


def test_nothing_is_asked_of_a_call_at_other_steps():
    recorder = LayerMapRecorder("image", "image", steps=[1])
    info = CallInfo("a", "self", 16, 16, 2, 8)
    assert recorder.wants(info, (4, 4)) is None
    assert recorder.wants(CallInfo("a", "self", 16, 16, 2, 8, step=1), (4, 4)) is not None
    assert recorder.wants(CallInfo("a", "self", 16, 16, 2, 8, text_tokens=16, text="all", step=1), (4, 4)) is None


def test_the_public_name():
    assert ea.LayerMapRecorder is LayerMapRecorder
