"""Cross-attention maps against materialized softmax probabilities, and the memory that they need."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPAGPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from entropy_attn.integrations.diffusers import apply
from entropy_attn.ops import api as ops
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.recorders.maps import MapRecorder
from entropy_attn.scale import CallInfo, Fixed
from tests.support.tiny_models import (
    TEXT_TOKENS,
    denoise,
    make_pipe,
    make_text_encoder,
    make_text_pipe,
    make_tokenizer,
    make_unet,
    sample,
)

OPTIONS = {"height": 32, "width": 48, "num_inference_steps": 2, "output_type": "latent"}
GRIDS = {16 * 24: (16, 24), 8 * 12: (8, 12)}  # grids of the two levels, by number of tokens


class Oracle(AttnProcessor2_0):
    """Computes head-averaged probabilities of a layer's cross-attention, in float64, before it runs as usual."""

    def __init__(self, notes: dict):
        super().__init__()
        self.notes = notes

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        if encoder_hidden_states is not None:
            query, key = (
                to(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()
                for to, tokens in ((attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states))
            )
            logits = query @ key.mT * attn.scale
            if attention_mask is not None:
                logits = logits + attention_mask.view(len(logits), -1, 1, key.shape[-2])[:, : attn.heads]
            self.notes[query.shape[2]].append(logits.softmax(-1).mean(1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)


def watch(unet) -> dict[int, list[torch.Tensor]]:
    """{number of tokens of a layer: its maps, one per call}."""
    notes: dict[int, list[torch.Tensor]] = defaultdict(list)
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.set_processor(Oracle(notes))
    return notes


@pytest.mark.parametrize("tokens", list(GRIDS), ids=["16x24", "8x12"])
def test_maps_are_the_mean_probabilities(pipe, tokens: int):
    """The mean is over heads, layers of the size, and steps; rectangular, rows first; only the conditional half."""
    notes, recorder = watch(pipe.unet), MapRecorder((1, 5), GRIDS[tokens])
    with apply(pipe, scale=None, record=recorder):
        sample(pipe, 32, 48, steps=3, batch=2)
    mean = torch.stack(notes[tokens]).mean(0)[2:]
    expected = mean[..., [1, 5]].mT.reshape(1, 2, 2, *GRIDS[tokens])
    assert recorder.map_size == GRIDS[tokens] and recorder.branch_names == ("cond",)
    assert recorder.tokens == ("1", "5") and len(recorder.layers) * 3 == len(notes[tokens])
    torch.testing.assert_close(recorder.maps(), expected.float(), rtol=1e-4, atol=1e-5)


def test_branches_and_steps_kept_apart():
    pipe = make_pipe()
    notes, recorder = watch(pipe.unet), MapRecorder(special=True, size=(8, 12), steps=(0, 2), all_branches=True)
    with apply(pipe, scale=None, record=recorder):
        sample(pipe, 32, 48, steps=4)
    assert recorder.recorded_steps == (0, 2) and recorder.branch_names == ("uncond", "cond")
    assert recorder.maps().shape == (2, 1, TEXT_TOKENS, 8, 12)
    for step in (0, 2):
        expected = notes[96][step].mT.reshape(2, 1, TEXT_TOKENS, 8, 12)
        torch.testing.assert_close(recorder.maps(step), expected.float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(recorder.heat_map(3, step=2), recorder.maps(2)[1, 0, 3])  # of the conditional half
    assert torch.equal(recorder.heat_map(3, step=2, branch="uncond"), recorder.maps(2)[0, 0, 3])
    both = (recorder.maps(0) + recorder.maps(2)) / 2
    torch.testing.assert_close(recorder.maps(), both)
    torch.testing.assert_close(both.sum(2), torch.ones(2, 1, 8, 12))
    with pytest.raises(ValueError, match="step: expected one of 0, 2, got 1"):
        recorder.maps(1)


def test_words_of_a_prompt():
    pipe = make_text_pipe()
    notes = watch(pipe.unet)
    words, every = MapRecorder(("ab", "c"), (16, 24)), MapRecorder(size=(16, 24))
    with apply(pipe, scale=None, record=[words, every]):
        pipe("ab c c", **OPTIONS)
    mean = torch.stack(notes[384]).mean(0)[1:].float().mT.reshape(1, TEXT_TOKENS, 16, 24)
    expected = torch.stack([mean[:, 1:3].mean(1), mean[:, 3:5].mean(1)], dim=1)
    assert words.tokens == ("ab", "c") and words.positions == ((1, 2), (3, 4))
    torch.testing.assert_close(words.maps()[0], expected, rtol=1e-4, atol=1e-5)
    assert every.tokens == ("a", "b", "c", "c")
    torch.testing.assert_close(every.maps()[0], mean[:, 1:5], rtol=1e-4, atol=1e-5)


def test_positions_differ_between_prompts_of_a_batch():
    pipe = make_text_pipe()
    notes, recorder, every = watch(pipe.unet), MapRecorder("c", (8, 12)), MapRecorder(size=(8, 12))
    with apply(pipe, scale=None, record=[recorder, every]):
        pipe(["c", "ab c"], num_images_per_prompt=2, **OPTIONS)
    mean = torch.stack(notes[96]).mean(0)[4:].float().mT.reshape(4, TEXT_TOKENS, 8, 12)
    expected = torch.stack([mean[0, 1], mean[1, 1], mean[2, 3], mean[3, 3]])
    torch.testing.assert_close(recorder.maps()[0, :, 0], expected, rtol=1e-4, atol=1e-5)
    assert every.labels(1) == ("c",) and every.labels(2) == ("a", "b", "c")
    with pytest.raises(ValueError, match="different numbers of tokens"):
        every.maps()
    torch.testing.assert_close(every.heat_map("c", picture=2), recorder.heat_map("c", picture=2))


def test_words_with_the_second_encoder_of_sdxl():
    """The base model has two tokenizers that agree, the refiner only the second."""
    parts = make_pipe("sdxl").components
    torch.manual_seed(0)
    encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(**{**make_text_encoder().config.to_dict(), "projection_dim": 32})
    )
    parts |= {"text_encoder": None, "text_encoder_2": encoder.eval(), "tokenizer_2": make_tokenizer()}
    pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    notes, recorder = watch(pipe.unet), MapRecorder("c", (16, 24))
    with apply(pipe, scale=None, record=recorder):
        pipe(prompt="ab c", **OPTIONS)
    expected = torch.stack(notes[384]).mean(0)[1, :, 3].reshape(1, 1, 1, 16, 24)
    torch.testing.assert_close(recorder.maps(), expected.float(), rtol=1e-4, atol=1e-5)


def test_without_guidance_and_with_a_stated_prompt():
    pipe = make_text_pipe()
    recorder = MapRecorder("c", (8, 8), prompt="ab c")
    with apply(pipe, scale=None, record=recorder):
        sample(pipe, guidance_scale=1.0)
    assert recorder.branch_names == ("all",) and recorder.positions == ((3,),)


def test_masks_are_used():
    unet, recorder = make_unet(), MapRecorder(special=True, size=(16, 16))
    notes = watch(unet)
    mask = torch.ones(2, TEXT_TOKENS)
    mask[:, 3:] = 0
    with apply(unet, scale=None, record=recorder):
        unet(
            torch.randn(2, 4, 16, 16),
            torch.tensor(10),
            torch.randn(2, TEXT_TOKENS, 32),
            encoder_attention_mask=mask,
        )
    expected = torch.stack(notes[256]).mean(0).mT.reshape(1, 2, TEXT_TOKENS, 16, 16)
    assert recorder.maps()[:, :, 3:].max() == 0
    torch.testing.assert_close(recorder.maps(), expected.float(), rtol=1e-4, atol=1e-5)


def test_one_attention_call_serves_every_recorder(monkeypatch):
    unet, calls = make_unet(), []
    attention = ops.attention

    def count(*args, **kwargs):
        calls.append((kwargs.get("return_entropy", False), kwargs.get("map_keys")))
        return attention(*args, **kwargs)

    monkeypatch.setattr(ops, "attention", count)
    recorders = [EntropyRecorder(), MapRecorder((2, 3), (16, 16)), MapRecorder(5, (16, 16))]
    with apply(unet, scale=None, record=recorders) as handle:
        assert handle.recorders == tuple(recorders)
        denoise(unet)
    cross = sum(name.endswith("attn2") for name in handle.layers)
    large = len(recorders[1].layers)
    assert len(calls) == len(handle.layers) and calls.count((True, (2, 6))) == large
    assert calls.count((True, None)) == len(handle.layers) - large and 0 < large < cross
    alone = MapRecorder(5, (16, 16))
    with apply(unet, scale=None, record=alone):
        denoise(unet)
    assert calls[-len(handle.layers) :].count((False, (5, 6))) == large  # the other layers record nothing
    torch.testing.assert_close(alone.maps(), recorders[2].maps(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("latent", "expected"), [((16, 16), (16, 16)), ((13, 21), (13, 21))])
def test_the_most_common_size_is_chosen(unet, latent, expected):
    recorder = MapRecorder(1)
    with apply(unet, scale=None, record=recorder):
        denoise(unet, *latent)
        assert recorder.map_size == expected and len(recorder.layers) == 3 and len(recorder._sums.held) == 2
        denoise(unet, *latent, timestep=5)
        assert len(recorder._sums.held) == 1 and recorder._sums.held[expected, None, "all"].calls == 6
    assert recorder.maps().shape == (1, 1, 1, *expected)


def test_of_equally_common_sizes_a_quarter_of_the_latent_is_chosen():
    recorder = MapRecorder(1)
    for tokens, layers in ((64 * 48, 5), (32 * 24, 5), (16 * 12, 5), (8 * 6, 1)):
        for layer in range(layers):
            recorder.observe(CallInfo(f"{tokens}.{layer}", "cross", tokens, 77, 1, 8, text_tokens=77), (64, 48))
    assert recorder._sums.size((64, 48)) == (16, 12)  # Stable Diffusion at 512 x 384
    recorder.reset()
    for tokens, layers in ((64 * 64, 10), (32 * 32, 60)):
        for layer in range(layers):
            recorder.observe(CallInfo(f"{tokens}.{layer}", "cross", tokens, 77, 1, 8, text_tokens=77), (128, 128))
    assert recorder._sums.size((128, 128)) == (32, 32)  # SDXL at 1024


def requested(recorder: MapRecorder, info: CallInfo, latent_size: tuple[int, int]):
    """The request of the recorder, obtained as in the router."""
    recorder.observe(info, latent_size)
    return recorder.wants(info, latent_size)


def held(recorder: MapRecorder) -> int:
    return sum(each.total.untyped_storage().nbytes() for each in recorder._sums.held.values())


def test_memory_does_not_grow_with_steps_layers_or_heads():
    sizes = []
    for steps, options in ((1, {}), (6, {}), (2, {"layers_per_block": 3}), (2, {"attention_head_dim": 1})):
        pipe, recorder = make_pipe(**options), MapRecorder((2, 4), (16, 16))
        with apply(pipe, scale=None, record=recorder):
            sample(pipe, steps=steps)
        sizes.append(held(recorder))
        assert len(recorder._sums.held) == 1
    assert set(sizes) == {256 * 3 * 4}  # one float32 per image token for each of the positions 2 to 4
    recorder = MapRecorder((2, 4), (16, 16), steps=range(5))
    with apply(pipe, scale=None, record=recorder):
        sample(pipe, steps=6)
    assert held(recorder) == 5 * 256 * 3 * 4


def test_recording_waits_for_nothing():
    waiting = ("aten::_local_scalar_dense", "aten::_to_copy", "aten::nonzero", "aten::is_nonzero")

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.name() not in waiting
            return func(*args, **(kwargs or {}))

    recorder = MapRecorder((1, 2))
    with Watch():
        for step in range(2):
            info = CallInfo("a", "cross", 16, 7, 2, 8, text_tokens=7, step=step)
            recorder.observe(info, (4, 4))
            assert recorder.wants(info, (4, 4)) == (1, 3)
            recorder.record(info, 0.1, torch.rand(2, 16, 2), ("uncond", "cond"), (4, 4))
    assert recorder.maps().shape == (1, 1, 2, 4, 4)


def test_keys_that_are_not_text_are_ignored():
    """Layers with an IP-Adapter also attend to the four tokens of its image."""
    recorder = MapRecorder(1)
    text, image = (CallInfo("a", "cross", 16, keys, 2, 8, text_tokens=keys) for keys in (7, 4))
    assert requested(recorder, text, (4, 4)) == (1, 2) and requested(recorder, image, (4, 4)) is None
    assert requested(recorder, CallInfo("a", "self", 16, 16, 2, 8), (4, 4)) is None


def test_wants_changes_nothing():
    """`observe` changes the recorder; `wants` only reads, so it can be called any number of times, in any order."""
    large, small = (CallInfo(f"{n}", "cross", n, 7, 2, 8, text_tokens=7) for n in (64, 16))
    asked, plain = MapRecorder(1), MapRecorder(1)
    assert asked.wants(small, (8, 8)) is None  # the text is not known yet
    for step in range(2):
        for info in (large, large, small):
            info = dataclasses.replace(info, step=step)
            asked.observe(info, (8, 8))
            plain.observe(info, (8, 8))
            for other in (info, small, large, dataclasses.replace(small, step=7)):
                asked.wants(other, (8, 8))
            assert asked.wants(info, (8, 8)) == plain.wants(info, (8, 8))
    assert vars(asked._sums) == vars(plain._sums) and vars(asked._seen) == vars(plain._seen)
    assert asked._sums.size((8, 8)) == plain._sums.size((8, 8)) == (4, 4)
    assert plain.wants(large, (8, 8)) is None and plain.wants(small, (8, 8)) == (1, 2)


def test_maps_are_averaged_over_generations_until_reset():
    pipe, recorder = make_text_pipe(), MapRecorder("c", (16, 24))
    with apply(pipe, scale=None, record=recorder):
        for seed in (0, 1):
            pipe("ab c", generator=torch.Generator().manual_seed(seed), **OPTIONS)
        both = recorder.maps()
        with pytest.raises(ValueError, match=r"holds the maps of the prompt 'ab c': reset\(\) it before another"):
            pipe("c", **OPTIONS)
        each = []
        for seed in (0, 1):
            recorder.reset()
            pipe("ab c", generator=torch.Generator().manual_seed(seed), **OPTIONS)
            each.append(recorder.maps())
        torch.testing.assert_close(both, torch.stack(each).mean(0), rtol=1e-4, atol=1e-6)
        with pytest.raises(ValueError, match=r"from latents of \(16, 24\), to.*\(16, 16\).*reset\(\)"):
            pipe("ab c", **{**OPTIONS, "width": 32})
        recorder.reset()
        pipe("c", **OPTIONS)
        assert recorder.positions == ((1,),)
        with pytest.raises(ValueError, match=r"from 1 images in.*'cond'\), to which those 2 images in"):
            pipe("c", num_images_per_prompt=2, **OPTIONS)


def test_recording_with_and_then_without_inference_mode():
    unet, recorder = make_unet(), MapRecorder(1, (16, 16))
    with apply(unet, scale=None, record=recorder):
        with torch.inference_mode():
            denoise(unet)
        denoise(unet)
    assert not recorder.maps().requires_grad


def test_hooks_of_the_pipeline_are_removed():
    pipe, recorder = make_text_pipe(), MapRecorder("c", (8, 12))
    handle = apply(pipe, scale=None, record=recorder)
    twin = copy.deepcopy(pipe)
    twin("x", **OPTIONS)
    assert twin.encode_prompt.__self__ is twin and not recorder._sums
    handle.remove()
    assert "encode_prompt" not in pipe.__dict__
    with apply(pipe, scale=None):
        assert "encode_prompt" not in pipe.__dict__


def test_gradient_checkpointing(unet):
    def gradient() -> torch.Tensor:
        unet.zero_grad()
        denoise(unet).square().sum().backward()
        return unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_q").weight.grad.clone()

    expected, recorder = gradient(), MapRecorder(1)
    with apply(unet, scale=None, record=recorder):
        unet.train().enable_gradient_checkpointing()
        torch.testing.assert_close(gradient(), expected, rtol=1e-3, atol=1e-5)
    assert recorder._sums.held[(16, 16), None, "all"].calls == 3


def test_errors_of_reading_name_what_is_missing(unet):
    recorder = MapRecorder(1, (5, 5))
    with pytest.raises(ValueError, match="no call with text among its keys was recorded"):
        recorder.maps()
    none = r"size=\(5, 5\): no.*\(8, 8\) \(1 layers\), \(16, 16\) \(3 layers\)"
    with apply(unet, scale=None, record=recorder), pytest.raises(ValueError, match=none):
        denoise(unet)  # raises at the first call, not after sampling
    with pytest.raises(ValueError, match=none):
        recorder.maps()
    recorder = MapRecorder(1, steps=(7,))
    with apply(unet, scale=None, record=recorder):
        denoise(unet)
    with pytest.raises(ValueError, match=r"steps=\[7\]: none of them was run; the last step was 0"):
        _ = recorder.tokens
    recorder = MapRecorder(1)
    with apply(unet, scale=None, record=recorder):
        denoise(unet)
    with pytest.raises(ValueError, match="step=0: steps were not kept apart"):
        recorder.maps(0)


def test_unknown_prompts(unet):
    with pytest.raises(ValueError, match=r"tokens=\('c',\): words need the pipeline's tokenizer"):
        apply(unet, record=MapRecorder("c"))
    with pytest.raises(ValueError, match="tokens=None: words need"):
        apply(make_pipe(), record=MapRecorder())
    pipe = make_text_pipe()
    with apply(pipe, scale=None, record=MapRecorder("c")), pytest.raises(ValueError, match="prompt is not known"):
        sample(pipe)
    with apply(pipe, scale=None, record=MapRecorder("x")), pytest.raises(ValueError, match="'x' is not in the prompt"):
        pipe("ab c", **OPTIONS)
    with pytest.raises(ValueError, match="'x' is not in the prompt"):
        apply(pipe, record=MapRecorder("x", prompt="ab c"))
    with apply(unet, scale=None, record=MapRecorder(9)), pytest.raises(ValueError, match="position 9 is not in the"):
        denoise(unet)


def test_other_kinds_of_guidance_need_stated_branches():
    pipe = StableDiffusionPAGPipeline(**make_pipe().components, requires_safety_checker=False)
    with pytest.raises(ValueError, match=r"MapRecorder\(branches="):
        apply(pipe, record=MapRecorder(1))
    apply(pipe, record=MapRecorder(1, branches=("uncond", "cond", "perturbed"))).remove()


def test_heat_maps_and_overlays():
    pipe, recorder = make_text_pipe(), MapRecorder(("ab", "c"), (8, 12))
    with apply(pipe, scale=None, record=recorder):
        pipe("ab c", **OPTIONS)
    small = recorder.heat_map("c")
    assert torch.equal(small, recorder.maps()[0, 0, 1]) and torch.equal(small, recorder.heat_map(1))
    for mode in ("bicubic", "bilinear", "nearest"):
        large = recorder.heat_map("c", (32, 48), mode=mode)
        assert large.shape == (32, 48) and small.min() <= large.min() and large.max() <= small.max()
    assert torch.equal(recorder.heat_map("c", (16, 24), mode="nearest")[::2, ::2], small)
    image = Image.new("RGB", (48, 32), "white")
    laid = recorder.overlay(image, "c", strength=1.0, mode="nearest")
    assert laid.size == image.size
    row, column = divmod(int(small.argmax()), 12)
    assert laid.getpixel((column * 4 + 1, row * 4 + 1)) == (252, 255, 164)
    assert np.array_equal(np.asarray(recorder.overlay(image, "c", strength=0.0)), np.asarray(image))
    for options, message in (
        ({"token": "x"}, r"token: expected one of \('ab', 'c'\).*got 'x'"),
        ({"token": 2}, "token: .*got 2"),
        ({"token": "c", "mode": "cubic"}, "mode: .*got 'cubic'"),
        ({"token": "c", "size": (0, 3)}, r"size: .*got \(0, 3\)"),
        ({"token": "c", "picture": 1}, "picture: expected an integer from 0 to 0, got 1"),
        ({"token": "c", "branch": "uncond"}, r"branch: expected one of \('cond',\).*got 'uncond'"),
    ):
        with pytest.raises(ValueError, match=message):
            recorder.heat_map(**{"size": (4, 4), **options})
    for options, message in (({"strength": 2}, "strength: .*got 2"), ({"limits": (1.0, 0.0)}, "limits: ")):
        with pytest.raises(ValueError, match=message):
            recorder.overlay(image, "c", **options)


def test_a_label_that_occurs_twice_needs_an_index():
    pipe, recorder = make_text_pipe(), MapRecorder(size=(8, 12))
    with apply(pipe, scale=None, record=recorder):
        pipe("c c", **OPTIONS)
    with pytest.raises(ValueError, match=r"token: .*got 'c'; give one of its indices \[0, 1\]"):
        recorder.heat_map("c")
    recorder.heat_map(1)


def test_save(tmp_path):
    pipe = make_text_pipe()
    recorders = [MapRecorder(("ab", "c"), (8, 12)), MapRecorder("c", (8, 12), steps=(0, 1))]
    with apply(pipe, scale=None, record=recorders):
        pipe("ab c", **OPTIONS)
    with np.load(recorders[0].save(tmp_path / "maps.npz")) as file:
        assert np.array_equal(file["maps"], recorders[0].maps().numpy())
        assert file["tokens"].tolist() == [["ab", "c"]] and file["branches"].tolist() == ["cond"]
    with np.load(recorders[1].save(tmp_path / "steps.npz")) as file:
        assert file["steps"].tolist() == [0, 1] and np.array_equal(file["maps"][1], recorders[1].maps(1).numpy())
    with recorders[1].save(str(tmp_path / "maps.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 96 and rows[0]["token"] == "c" and rows[-1]["step"] == "1"
    assert float(rows[13]["attention"]) == pytest.approx(float(recorders[1].maps(0)[0, 0, 0, 1, 1]))
    rows = json.loads(recorders[0].save(tmp_path / "maps.json").read_text())
    assert rows[0]["step"] == "mean" and {row["token"] for row in rows} == {"ab", "c"}
    with pytest.raises(ValueError, match=r"\.npz, \.csv or \.json, got .*maps\.png"):
        recorders[0].save(tmp_path / "maps.png")


def test_recording_does_not_change_the_image(pipe):
    with apply(pipe, scale=Fixed(0.3), layers="all"):
        expected = sample(pipe)
    with apply(pipe, scale=Fixed(0.3), layers="all", record=MapRecorder(1)):
        torch.testing.assert_close(sample(pipe), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 16}, ValueError, "size: expected .*got 16"),
        ({"size": (0, 4)}, ValueError, r"size: expected .*got \(0, 4\)"),
        ({"size": (4.0, 4)}, ValueError, r"size: expected .*got \(4\.0, 4\)"),
        ({"steps": 3}, TypeError, "steps: expected .*got 3"),
        ({"steps": (-1,)}, ValueError, r"steps: expected .*got \(-1,\)"),
        ({"steps": ()}, ValueError, "at least one"),
        ({"all_branches": "yes"}, TypeError, "all_branches: expected .*got 'yes'"),
        ({"prompt": 3}, TypeError, "prompt: expected .*got 3"),
        ({"branches": ("a", "b")}, ValueError, "branches: expected 'cond' among them"),
    ],
)
def test_refusals(options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        MapRecorder(**options)


@pytest.mark.parametrize("record", [(), [None], [EntropyRecorder, MapRecorder], "maps"])
def test_other_objects_than_recorders_are_refused(unet, record):
    with pytest.raises(TypeError, match="record: "):
        apply(unet, record=record)
    recorder = EntropyRecorder()
    with pytest.raises(ValueError, match="each recorder once"):
        apply(unet, record=[recorder, recorder])
