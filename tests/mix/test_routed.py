"""Mixes through whole models and pipelines, against attention written out in place of torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.errors import Unroutable
from entropy_attn.mix import NAG, Identity, Mix, OtherScale, OtherText, SoftPAG
from entropy_attn.routing.calls import AttentionArguments
from entropy_attn.scale import TACA, CallInfo, Constant, OfBranch
from tests.support.tiny_denoisers import CASES, TEXT
from tests.support.tiny_models import TEXT_TOKENS, Spy, make_pipe, sample
from tests.support.tiny_pipelines import PIPELINES

IMAGE = 24  # tokens of the tiny transformers
SIZE = (12, 8)


class InPlaceOfTorch(TorchFunctionMode):
    """`attend(query, key, value, probabilities of s)` of calls with this many keys; counts them."""

    def __init__(self, keys: int, attend: Callable[[Tensor, Tensor, Tensor, Any], Tensor]):
        super().__init__()
        self.keys, self.attend, self.count = keys, attend, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, mask, *_ = AttentionArguments(*args, **kwargs)
        if key.shape[-2] != self.keys:
            return func(*args, **kwargs)
        self.count += 1

        def plain(query: Tensor, key: Tensor, value: Tensor, factor: float = 1.0) -> Tensor:
            s = query @ key.mT * (query.shape[-1] ** -0.5 * factor)
            return s.softmax(-1) @ value if mask is None else (s + mask).softmax(-1) @ value

        return self.attend(query, key, value, plain)


def nag(positive: Tensor, negative: Tensor, strength: float, tau: float, alpha: float) -> Tensor:
    """The reference code of the paper, on (batch, queries, heads x channels)."""
    positive, negative = (z.transpose(1, 2).flatten(2) for z in (positive, negative))
    guided = positive * (1 + strength) - negative * strength
    scale = guided.norm(p=1, dim=-1, keepdim=True) / positive.norm(p=1, dim=-1, keepdim=True)
    guided = guided * scale.clamp(max=tau) / scale
    return guided * alpha + positive * (1 - alpha)


def run(name: str, denoiser: Any) -> Tensor:
    return denoiser(**CASES[name].call(*SIZE), return_dict=False)[0]


# -- normalized attention guidance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_nag_in_cross_attention(batch):
    pipe = make_pipe("sd1")

    def attend(query: Tensor, key: Tensor, value: Tensor, plain: Any) -> Tensor:
        out = plain(query, key, value)
        heads = query.shape[1]
        negative = plain(query[batch:], key[:batch], value[:batch])  # of the unconditional samples, which are first
        mixed = nag(out[batch:], negative, 3.0, 1.2, 0.5).unflatten(2, (heads, -1)).transpose(1, 2)
        return torch.cat([out[:batch], mixed])

    with InPlaceOfTorch(TEXT_TOKENS, attend) as written:
        wanted = sample(pipe, batch=batch)
    assert written.count
    with ea.apply(pipe, None, mix=NAG(3.0, 1.2, 0.5)) as handle:
        torch.testing.assert_close(sample(pipe, batch=batch), wanted, rtol=1e-4, atol=1e-4)
        assert "mix=NAG" in repr(handle) and "NAG" in handle._repr_html_()
    assert not torch.allclose(sample(pipe, batch=batch), wanted, atol=1e-3), "and it is undone"


def test_nag_in_joint_attention_mixes_the_image_alone():
    """Stable Diffusion 3: image first; the keys of the image remain, those of the text are the other sample's."""
    case = PIPELINES["sd3"]
    pipe = case.make()

    def attend(query: Tensor, key: Tensor, value: Tensor, plain: Any) -> Tensor:
        out = plain(query, key, value)
        other_key, other_value = (torch.cat([t[1:, :, :IMAGE], t[:1, :, IMAGE:]], 2) for t in (key, value))
        negative = plain(query[1:, :, :IMAGE], other_key, other_value)
        mixed = nag(out[1:, :, :IMAGE], negative, 4.0, 2.5, 0.25).unflatten(2, (query.shape[1], -1)).transpose(1, 2)
        out = out.clone()
        out[1:, :, :IMAGE] = mixed
        return out

    with InPlaceOfTorch(IMAGE + TEXT, attend):
        wanted = case.run(pipe)
    with ea.apply(pipe, None, mix=NAG()):
        torch.testing.assert_close(case.run(pipe), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(case.run(pipe), wanted, atol=1e-4)


def test_nag_with_a_mask_of_the_text():
    """PixArt's cross-attention masks the padding of each text: the mask goes with the keys."""
    case = PIPELINES["pixart"]
    pipe = case.make()
    call = {name: value.clone() if isinstance(value, Tensor) else value for name, value in case.call().items()}
    call["prompt_attention_mask"][:, -1] = 0
    call["negative_prompt_attention_mask"][:, -2:] = 0
    masks = []

    class Attention(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            arguments = AttentionArguments(*args, **kwargs) if func is F.scaled_dot_product_attention else None
            if arguments is None or arguments.key.shape[-2] != TEXT:
                return func(*args, **kwargs)
            query, key, value, mask, *_ = arguments
            masks.append(mask)

            def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
                return (query @ key.mT * query.shape[-1] ** -0.5 + mask).softmax(-1) @ value

            out = plain(query, key, value, mask)
            negative = plain(query[1:], key[:1], value[:1], mask[:1])
            mixed = nag(out[1:], negative, 4.0, 2.5, 0.25).unflatten(2, (query.shape[1], -1)).transpose(1, 2)
            return torch.cat([out[:1], mixed])

    options = {name: call[name] for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    with Attention():
        wanted = case.run(pipe, **options)
    assert masks and not torch.equal(masks[0][0], masks[0][1])
    with ea.apply(pipe, None, mix=NAG()):
        torch.testing.assert_close(case.run(pipe, **options), wanted, rtol=1e-4, atol=1e-4)


def test_nag_without_strength_changes_nothing():
    pipe = make_pipe("sd1")
    with ea.apply(pipe, None, mix=NAG(0.0)):
        torch.testing.assert_close(sample(pipe), sample(make_pipe("sd1")), rtol=1e-5, atol=1e-5)


# -- soft perturbed attention ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd3", "flux"])
@torch.no_grad()
def test_soft_pag_in_joint_attention(name):
    denoiser = CASES[name].make()
    rows = slice(0, IMAGE) if name == "sd3" else slice(TEXT, TEXT + IMAGE)

    def attend(query: Tensor, key: Tensor, value: Tensor, plain: Any) -> Tensor:
        out = plain(query, key, value).clone()
        out[:, 1, rows] += 0.6 * (value[:, 1, rows] - out[:, 1, rows])
        return out

    with InPlaceOfTorch(IMAGE + TEXT, attend):
        wanted = run(name, denoiser)
    recorder = ea.EntropyRecorder()
    plain = ea.EntropyRecorder()
    pattern = r"attn$"
    with ea.apply(denoiser, None, mix=SoftPAG(0.6, heads={pattern: (1,)}), record=recorder):
        torch.testing.assert_close(run(name, denoiser), wanted, rtol=1e-4, atol=1e-4)
    with ea.apply(denoiser, None, record=plain):
        assert not torch.allclose(run(name, denoiser), wanted, atol=1e-3)
    first = recorder.to_dataframe().iloc[0], plain.to_dataframe().iloc[0]
    assert first[0]["mean"] == pytest.approx(first[1]["mean"], rel=1e-5), "of the first answer"


def test_soft_pag_of_chosen_layers_steps_and_branches():
    pipe = make_pipe("sd1")
    layer = r"up_blocks\.1.*attn1$"

    def attend(query: Tensor, key: Tensor, value: Tensor, plain: Any) -> Tensor:
        out = plain(query, key, value)
        if written.count not in first_step:
            return out
        return torch.cat([out[:2] + 0.5 * (value[:2] - out[:2]), out[2:]])

    # 256 keys: one layer in the first block and two in the last, so calls 2 and 3 of the first step
    first_step = (2, 3)
    with InPlaceOfTorch(256, attend) as written:
        wanted = sample(pipe, batch=2)
    with ea.apply(pipe, None, mix=SoftPAG(0.5, layers=layer, steps=(0,), branch="uncond")):
        torch.testing.assert_close(sample(pipe, batch=2), wanted, rtol=1e-4, atol=1e-4)
    with ea.apply(pipe, None, mix=SoftPAG(0.5, layers=layer, branch="uncond")):
        assert not torch.allclose(sample(pipe, batch=2), wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["mochi", "zimage", "cogvideox", "lumina", "if", "wan", "ldm"])
@torch.no_grad()
def test_soft_pag_in_other_models(name):
    """Identity in all heads of all layers: attention among the image's own tokens is switched off."""
    denoiser, case = CASES[name].make(), CASES[name]
    call = case.call(*case.sizes[0])

    def result() -> Tensor:
        found = denoiser(**call, return_dict=False)[0]
        return torch.cat([each.flatten() for each in found]) if isinstance(found, list) else found

    plain = result()
    with ea.apply(denoiser, None, mix=SoftPAG(0.0)):
        torch.testing.assert_close(result(), plain)
    with ea.apply(denoiser, None, mix=SoftPAG(1.0)):
        weak = result()
    assert weak.isfinite().all() and not torch.allclose(weak, plain)


# -- mixes of one's own ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sharpened(Mix):
    """2 out - (the answer at another scale): ten lines, as users write them."""

    factor: float = 0.5

    def other(self, info: CallInfo) -> OtherScale:
        return OtherScale(self.factor * info.head_dim**-0.5)

    def combine(self, out: Tensor, other: Tensor, value: Tensor, info: CallInfo) -> Tensor:
        return 2 * out - other


@torch.no_grad()
def test_another_scale_beside_that_of_a_policy():
    denoiser = CASES["flux"].make()
    rows = slice(TEXT, TEXT + IMAGE)

    def attend(query: Tensor, key: Tensor, value: Tensor, plain: Any) -> Tensor:
        out = plain(query, key, value, 1.5)
        out[:, :, rows] = 2 * out[:, :, rows] - plain(query, key, value, 0.5)[:, :, rows]
        return out

    with InPlaceOfTorch(IMAGE + TEXT, attend):
        wanted = run("flux", denoiser)
    with ea.apply(denoiser, Constant(1.5), mix=Sharpened()):
        torch.testing.assert_close(run("flux", denoiser), wanted, rtol=1e-4, atol=1e-4)
    with ea.apply(denoiser, Constant(1.5), rows="image", mix=Sharpened()):
        assert not torch.allclose(run("flux", denoiser), wanted, atol=1e-3)


def test_a_scale_for_each_sample_of_the_second_answer():
    case = PIPELINES["sd3"]
    pipe = case.make()

    @dataclass(frozen=True)
    class Second(Mix):
        def other(self, info: CallInfo) -> OtherScale:
            scales = torch.tensor([[0.7], [0.2]]) * info.head_dim**-0.5
            return OtherScale(scales.expand(2, info.num_heads))

        def combine(self, out: Tensor, other: Tensor, value: Tensor, info: CallInfo) -> Tensor:
            return other

    def attend(query: Tensor, key: Tensor, value: Tensor, plain: Any) -> Tensor:
        out = plain(query, key, value)
        out[1, :, :IMAGE] = plain(query, key, value, 0.2)[1, :, :IMAGE]
        return out

    with InPlaceOfTorch(IMAGE + TEXT, attend):
        wanted = case.run(pipe)
    with ea.apply(pipe, OfBranch(Constant(1.0), "cond"), mix=Second(layers="attn$", branch="cond")):
        torch.testing.assert_close(case.run(pipe), wanted, rtol=1e-4, atol=1e-4)


def test_a_mix_is_differentiable():
    denoiser = CASES["flux"].make()
    call = CASES["flux"].call(*SIZE)
    latents = call["hidden_states"].clone().requires_grad_()
    with ea.apply(denoiser, None, mix=SoftPAG(0.5)):
        denoiser(**{**call, "hidden_states": latents}, return_dict=False)[0].square().mean().backward()
    gradient = latents.grad.clone()
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    step = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))

    def loss(by: float) -> float:
        with torch.no_grad(), ea.apply(denoiser.double(), None, mix=SoftPAG(0.5)):
            inputs = {
                name: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for name, t in call.items()
            }
            inputs["hidden_states"] = inputs["hidden_states"] + by * step.double()
            return float(denoiser(**inputs, return_dict=False)[0].square().mean())

    slope = (loss(1e-4) - loss(-1e-4)) / 2e-4
    assert slope == pytest.approx(float((gradient * step).sum()), rel=1e-3)


def test_a_mix_asks_for_what_it_reads():
    case, seen = PIPELINES["sd3"], []

    class Watching(Sharpened):
        needs_sigma = True

        def other(self, info: CallInfo) -> None:
            seen.append(info)

    pipe = case.make()
    with ea.apply(pipe, None, mix=Watching()):
        assert torch.equal(case.run(pipe), case.run(case.make()))
    assert {info.sigma for info in seen} == set(pipe.scheduler.sigmas[:2].tolist())
    assert {info.step for info in seen} == {0, 1}


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_apply_refuses():
    pipe, denoiser = make_pipe("sd1"), CASES["flux"].make()
    with pytest.raises(TypeError, match=r"mix: expected an ea\.mix\.Mix, such as NAG\(\)"):
        ea.apply(pipe, mix="nag")
    with pytest.raises(ValueError, match="layers='nowhere': matches none of the layers"):
        ea.apply(pipe, mix=SoftPAG(layers="nowhere"))
    with pytest.raises(ValueError, match=r"mix=NAG.*needs the pipeline.*Give a mix with branch=None"):
        ea.apply(denoiser, None, mix=NAG())
    assert ea.apply(pipe, None, mix=None).mix is None


@pytest.mark.parametrize(
    ("case", "options", "reason"),
    [
        ("sd3", {"guidance_scale": 1.0}, r"has no samples of the branch 'uncond'.*it has \('all',\)"),
        ("flux", {}, "one branch after the other are not served"),
        ("qwen", {}, "one branch after the other are not served"),
        ("mochi", {}, "one attention call for each sample, which has one text"),
    ],
)
def test_nag_without_a_negative_prompt_in_the_batch(case, options, reason):
    pipe = PIPELINES[case].make()
    with ea.apply(pipe, None, mix=NAG()), pytest.raises(Unroutable, match=f"mix=NAG: .*{reason}"):
        PIPELINES[case].run(pipe, **options)
    assert pipe.transformer.__class__.__name__ == type(CASES[PIPELINES[case].case].make()).__name__


@dataclass(frozen=True)
class Says(Mix):
    second: Any = None

    def other(self, info: CallInfo) -> Any:
        return self.second

    def combine(self, out: Tensor, other: Tensor, value: Tensor, info: CallInfo) -> Tensor:
        return out[..., :1]


@pytest.mark.parametrize(
    ("mix", "scale", "reason"),
    [
        (SoftPAG(), TACA(from_timestep=None), "scale policy gives KeyGroups"),
        (Says(OtherText()), None, "branches are not known; a mix with OtherText has needs_branches = True"),
        (Says(OtherScale(torch.ones(3))), None, r"OtherScale in layer .* \(2,\) or \(2, 2\), got torch"),
        (Says("identity"), None, r"other\(\) of mix Says.*expected Identity\(\), OtherScale\(\)"),
        (
            Says(Identity()),
            None,
            r"combine\(\) of mix Says.*expected a floating-point tensor of shape \(2, 2, 24, 16\)",
        ),
    ],
)
@torch.no_grad()
def test_what_a_call_refuses(mix, scale, reason):
    denoiser = CASES["flux"].make()
    with ea.apply(denoiser, scale, mix=mix), pytest.raises((Unroutable, ValueError, TypeError), match=reason):
        run("flux", denoiser)


def test_calls_that_cannot_be_answered_twice():
    from entropy_attn.routing.calls import DenoiserCall, LayerCall, LayerSelection
    from entropy_attn.routing.router import Router

    q = torch.randn(2, 2, 6, 8)
    router = Router(None, LayerSelection(), None, None, mix=Says(Identity(), layers="all"))
    call = DenoiserCall(0, (2, 3), image_tokens=6)

    def refused(reason: str, layer: LayerCall = LayerCall("a", "self"), key: Tensor = q, **options: Any) -> None:  # noqa: B008
        with router.denoiser_call(call), pytest.raises(Unroutable, match=reason):
            router.attention(layer, AttentionArguments(q, key, key, **options))

    refused("dropout_p=0.1; attention is mixed without dropout", dropout_p=0.1)
    refused("it is causal", is_causal=True)
    refused(
        "begin at different positions", LayerCall("a", "self", ragged=True), attn_mask=torch.ones(2, 1, 1, 6).bool()
    )
    refused("its queries are not among its keys", LayerCall("a", "cross", "all"))
    refused("the image has 6 queries and 3 keys", key=q[:, :, :3])


def test_layers_that_are_not_mixed_are_answered_once():
    """By identity of the answers: nothing is computed for a mix that says None."""
    pipe, spy = make_pipe("sd1"), Spy()
    with ea.apply(pipe, spy, layers="all", mix=Says(None)):
        assert torch.equal(sample(pipe), sample(make_pipe("sd1")))
    assert spy.calls
