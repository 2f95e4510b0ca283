"""Routing of pipelines: what policies see, that results agree, and that routing can be undone."""

from __future__ import annotations

import copy
import io
import math
import threading

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from entropy_attn.integrations.diffusers import apply
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.scale import Fixed, LogN
from tests.support.footprint import footprint
from tests.support.tiny_models import TEXT_TOKENS, Spy, denoise, make_pipe, sample

DOWN = "down_blocks.0.attentions.0.transformer_blocks.0"
MID = "mid_block.attentions.0.transformer_blocks.0"


@pytest.mark.parametrize("record", [False, True])
def test_fixed_scale_gives_the_same_image(pipe, record: bool):
    expected = sample(pipe)
    with apply(pipe, scale=Fixed(), record=EntropyRecorder() if record else None, layers="all"):
        torch.testing.assert_close(sample(pipe), expected, rtol=1e-4, atol=1e-4)


def test_a_scale_changes_the_image_and_removal_restores_it(pipe):
    before, expected = footprint(pipe.unet), sample(pipe, 48, 48)
    handle = apply(pipe, scale=LogN(strength=3))
    assert not torch.allclose(sample(pipe, 48, 48), expected, atol=1e-3)
    handle.remove()
    handle.remove()
    assert not handle.active
    assert torch.equal(sample(pipe, 48, 48), expected)
    assert footprint(pipe.unet) == before


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 64), (40, 56), (16, 16)])
def test_policy_sees_the_layers(pipe, height: int, width: int):
    spy = Spy()
    with apply(pipe, scale=spy, layers="all") as handle:
        sample(pipe, height, width, steps=2)
    layers = len(handle.layers)
    assert [info.layer for info in spy.calls[:layers]] == list(dict.fromkeys(info.layer for info in spy.calls))
    assert {info.layer for info in spy.calls} == set(handle.layers)
    assert [info.step for info in spy.calls] == [0] * layers + [1] * layers
    h, w = height // 2, width // 2
    sizes = {DOWN: (h * w, 256), MID: (math.ceil(h / 2) * math.ceil(w / 2), 64)}
    modules = dict(pipe.unet.named_modules())
    for info in spy.calls:
        assert info.num_heads == modules[info.layer].heads
        assert info.head_dim == modules[info.layer].inner_dim // info.num_heads
        for block, (tokens, train_tokens) in sizes.items():
            if info.layer == f"{block}.attn1":
                assert (info.kind, info.seqlen_q, info.seqlen_k, info.text_tokens) == ("self", tokens, tokens, 0)
                assert info.train_tokens == train_tokens
            if info.layer == f"{block}.attn2":
                assert (info.kind, info.seqlen_q, info.seqlen_k) == ("cross", tokens, TEXT_TOKENS)
                assert (info.text_tokens, info.train_tokens) == (TEXT_TOKENS, None)


def test_odd_sizes(unet):
    spy = Spy()
    with apply(unet, scale=spy):
        denoise(unet, 13, 21)
    tokens = {info.layer: (info.seqlen_k, info.train_tokens) for info in spy.calls}
    assert tokens[f"{DOWN}.attn1"] == (13 * 21, 256)
    assert tokens[f"{MID}.attn1"] == (7 * 11, 64)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("self", ["attn1"]),
        ("cross", ["attn2"]),
        ("all", ["attn1", "attn2"]),
        (r"mid_block.*attn2$", ["attn2"]),
        ("^down", ["attn1", "attn2"]),
    ],
)
def test_layers_selects_the_layers_of_the_policy(unet, layers: str, expected: list[str]):
    spy, recorder = Spy(), EntropyRecorder()
    with apply(unet, scale=spy, layers=layers, record=recorder) as handle:
        denoise(unet)
    assert sorted({info.layer.rpartition(".")[2] for info in spy.calls}) == expected
    if layers.startswith("^") or "mid" in layers:
        assert len({info.layer for info in spy.calls}) < len(handle.layers) / 2
    assert len(recorder) == len(handle.layers)


def test_self_attention_is_recognized_if_its_input_is_also_passed_as_encoder_states(unet):
    spy = Spy()
    layer = unet.get_submodule(f"{MID}.attn1")
    hidden = torch.randn(1, 16, 64)
    with apply(unet, scale=spy, layers="all"):
        layer(hidden, encoder_hidden_states=hidden)
        layer(hidden_states=hidden)
        layer(hidden, torch.randn(1, 5, 64))
    assert [info.kind for info in spy.calls] == ["self", "self", "cross"]


def test_scale_reaches_the_layer(unet):
    """With a scale of 0, every query attends uniformly: the output is the mean of the values."""
    layer = unet.get_submodule(f"{MID}.attn1")
    hidden = torch.randn(1, 16, 64)
    mean = layer.to_out[0](layer.to_v(hidden).mean(dim=1, keepdim=True)).expand(1, 16, 64)
    for scale in (Fixed(0.0), lambda info: torch.zeros(info.num_heads), lambda info: torch.tensor(0.0)):
        with apply(unet, scale=scale):
            torch.testing.assert_close(layer(hidden), mean)


def test_masks_reach_the_layer(unet):
    mask = torch.ones(2, TEXT_TOKENS)
    mask[:, 3:] = 0
    inputs = (torch.randn(2, 4, 16, 16), torch.tensor(10), torch.randn(2, TEXT_TOKENS, 32))
    expected = unet(*inputs, encoder_attention_mask=mask).sample
    assert not torch.allclose(expected, unet(*inputs).sample, atol=1e-3)
    for record in (None, EntropyRecorder()):
        with apply(unet, scale=Fixed(), layers="all", record=record):
            torch.testing.assert_close(
                unet(*inputs, encoder_attention_mask=mask).sample, expected, rtol=1e-4, atol=1e-4
            )


def test_only_the_denoiser_is_routed():
    pipe = make_pipe()
    others = {"vae": pipe.vae, "text_encoder": pipe.text_encoder}
    before = {name: footprint(module) for name, module in others.items()}
    ids = torch.zeros(1, TEXT_TOKENS, dtype=torch.long)
    text, image = pipe.text_encoder(ids)[0], pipe.vae.decode(torch.ones(1, 4, 8, 8)).sample
    spy = Spy(lambda info: 0.0)
    with apply(pipe, scale=spy, layers="all"):
        assert torch.equal(pipe.text_encoder(ids)[0], text)
        assert torch.equal(pipe.vae.decode(torch.ones(1, 4, 8, 8)).sample, image)
        assert {name: footprint(module) for name, module in others.items()} == before
    assert not spy.calls


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_an_exception_inside_a_layer_leaves_nothing_behind(error: type[BaseException]):
    pipe = make_pipe()
    before, expected = footprint(pipe.unet), sample(pipe)

    def stop(info):
        raise error

    handle = apply(pipe, scale=stop)
    with pytest.raises(error):
        sample(pipe)
    assert torch.overrides._len_torch_function_stack() == 0
    # still routed and usable
    with pytest.raises(error):
        sample(pipe)
    handle.remove()
    assert footprint(pipe.unet) == before
    assert torch.equal(sample(pipe), expected)


def test_context_manager_removes_after_an_exception(unet):
    before, expected = footprint(unet), denoise(unet)
    with pytest.raises(Stop), apply(unet, scale=Fixed(0.0)) as handle:
        raise Stop
    assert not handle.active
    assert footprint(unet) == before
    assert torch.equal(denoise(unet), expected)
    with pytest.raises(RuntimeError, match="apply again"), handle:
        pass


def test_two_pipelines_are_independent():
    first, second = make_pipe("sd1"), make_pipe("sd2")
    expected = sample(second, 48, 48)
    spies = Spy(), Spy(lambda info: 0.3)
    with apply(first, scale=spies[0]), apply(second, scale=spies[1]):
        sample(first, 32, 32)
        sample(second, 48, 48)
    assert {info.seqlen_k for info in spies[0].calls} == {256, 64}
    assert {info.seqlen_k for info in spies[1].calls} == {576, 144}
    handle = apply(first, scale=Fixed(0.0))
    assert torch.equal(sample(second, 48, 48), expected)
    handle.remove()


def test_threads_are_independent():
    pipes = [make_pipe("sd1") for _ in range(3)]
    policies = [Fixed(0.05), Fixed(0.5), None]
    expected = []
    for pipe, policy in zip(pipes, policies, strict=True):
        with apply(pipe, scale=policy):
            expected.append(sample(pipe, steps=3))
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    results: list = [None] * 3

    def work(index: int) -> None:
        with apply(pipes[index], scale=policies[index]):
            results[index] = sample(pipes[index], steps=3)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, wanted) for result, wanted in zip(results, expected, strict=True))


def test_one_denoiser_in_two_threads(unet):
    """The layers of each thread use the latent size of that thread."""
    spy, barrier = Spy(), threading.Barrier(2)

    def work(side: int) -> None:
        barrier.wait()
        for _ in range(3):
            denoise(unet, side, side)

    with apply(unet, scale=spy):
        threads = [threading.Thread(target=work, args=(side,)) for side in (8, 24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {(info.seqlen_k, info.train_tokens) for info in spy.calls} == {(64, 256), (16, 64), (576, 256), (144, 64)}


def test_applying_again_replaces_the_routing(unet):
    before, expected = footprint(unet), denoise(unet)
    old, new = Spy(), Spy()
    first = apply(unet, scale=old)
    second = apply(unet, scale=new)
    assert not first.active and second.active
    routed = denoise(unet)
    assert not old.calls and new.calls
    first.remove()
    assert second.active and torch.equal(denoise(unet), routed)
    second.remove()
    assert footprint(unet) == before
    assert torch.equal(denoise(unet), expected)


def test_applying_the_same_twice_is_like_applying_once(unet):
    with apply(unet, scale=Fixed(0.3)):
        once = denoise(unet)
    apply(unet, scale=Fixed(0.3))
    handle = apply(unet, scale=Fixed(0.3))
    assert torch.equal(denoise(unet), once)
    handle.remove()


def test_replacing_an_open_with_block_raises(unet):
    with apply(unet, scale=Fixed(0.3)) as handle:
        with pytest.raises(RuntimeError, match="enclosing"):
            apply(unet)
        assert handle.active
    apply(unet).remove()


def test_a_refused_apply_keeps_the_previous_routing(unet):
    handle = apply(unet, scale=Fixed(0.3))
    with pytest.raises(ValueError):
        apply(unet, layers="no such layer")
    assert handle.active
    handle.remove()


def test_copies_are_not_routed(unet):
    expected = denoise(unet)
    with apply(unet, scale=Fixed(0.0)):
        twin = copy.deepcopy(unet)
        file = io.BytesIO()
        torch.save(unet, file)
    file.seek(0)
    for other in (twin, torch.load(file, weights_only=False)):
        assert footprint(other) == footprint(unet)
        assert torch.equal(denoise(other), expected)
        spy = Spy()
        with apply(other, scale=spy):
            denoise(other)
        assert spy.calls


def test_a_routed_pipeline_is_saved_like_a_plain_one(tmp_path, unet):
    with apply(unet):
        unet.save_pretrained(tmp_path)
        shown = repr(unet)
    assert shown == repr(unet)
    torch.testing.assert_close(denoise(UNet2DConditionModel.from_pretrained(tmp_path)), denoise(unet))


def test_processors_set_later_are_routed(unet):
    expected = denoise(unet)
    spy = Spy()
    with apply(unet, scale=spy):
        unet.set_attn_processor(AttnProcessor2_0())
        unet.fuse_qkv_projections()
        torch.testing.assert_close(denoise(unet), expected, rtol=1e-4, atol=1e-5)
    assert spy.calls


def test_processors_without_an_attention_call_raise_when_applied(unet):
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(AttnProcessor())
    with pytest.raises(RuntimeError, match=rf"{MID}\.attn1.*AttnProcessor,.*set_attn_processor\(AttnProcessor2_0"):
        apply(unet)


def test_processors_without_an_attention_call_raise_when_called(unet):
    with apply(unet):
        unet.set_default_attn_processor()
        with pytest.raises(RuntimeError, match=rf"{DOWN}\.attn1.*AttnProcessor,.*set_attn_processor"):
            denoise(unet)
        unet.set_attn_processor(AttnProcessor2_0())
        denoise(unet)


def test_sliced_attention_raises(unet):
    unet.set_attention_slice("max")
    with pytest.raises(RuntimeError, match="SlicedAttnProcessor"):
        apply(unet)


@pytest.mark.parametrize("record", [False, True])
def test_gradients_flow(unet, record: bool):
    def gradient() -> torch.Tensor:
        latents = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8).requires_grad_()
        noise = unet(latents, torch.tensor(10), encoder_hidden_states=torch.ones(1, TEXT_TOKENS, 32)).sample
        return torch.autograd.grad(noise.square().sum(), latents)[0]

    expected = gradient()
    assert expected.abs().max() > 0
    with apply(unet, scale=Fixed(), layers="all", record=EntropyRecorder() if record else None):
        torch.testing.assert_close(gradient(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("record", [False, True])
def test_gradient_checkpointing(unet, record: bool):
    def gradients() -> list[torch.Tensor]:
        unet.zero_grad()
        denoise(unet, 24, 24).square().sum().backward()
        return [unet.get_submodule(f"{block}.attn1.to_q").weight.grad.clone() for block in (DOWN, MID)]

    recorder = EntropyRecorder()
    with apply(unet, scale=LogN(strength=3), record=recorder if record else None) as handle:
        expected = gradients()
        recorder.reset()
        unet.train().enable_gradient_checkpointing()
        torch.testing.assert_close(gradients(), expected, rtol=1e-3, atol=1e-5)
        assert len(recorder) == (len(handle.layers) if record else 0)


def test_steps_start_again_with_every_generation():
    pipe, spy = make_pipe(), Spy()
    with apply(pipe, scale=spy):
        for steps in (3, 3, 2):
            spy.calls.clear()
            sample(pipe, steps=steps)
            assert sorted({info.step for info in spy.calls}) == list(range(steps))


def test_steps_of_a_plain_denoiser_continue_until_reset(unet):
    spy = Spy()
    with apply(unet, scale=spy) as handle:
        steps = []
        for timestep in (20, 20, 10, 5):
            denoise(unet, timestep=timestep)
            steps.append(spy.calls[-1].step)
        assert steps == [0, 0, 1, 2]
        handle.reset_steps()
        denoise(unet, timestep=5)
        assert spy.calls[-1].step == 0


def test_a_pipeline_that_shares_the_denoiser_is_also_routed():
    pipe = make_pipe()
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    embeds = torch.ones(1, TEXT_TOKENS, 32)
    spy = Spy()
    with apply(pipe, scale=spy):
        other(
            image=torch.zeros(1, 3, 32, 32),
            prompt_embeds=embeds,
            negative_prompt_embeds=embeds,
            num_inference_steps=4,
            output_type="latent",
        )
    assert {info.seqlen_k for info in spy.calls} == {256, 64}
