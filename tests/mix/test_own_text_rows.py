"""A text of the mix's own in joint attention, against blocks that are called for one text after the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.models import MODELS
from entropy_attn.mix import NAG, Mix, OwnText
from entropy_attn.routing.calls import AttentionArguments
from entropy_attn.scale import TACA, CallInfo, Constant
from tests.support.tiny_denoisers import CASES, TEXT
from tests.support.tiny_pipelines import PIPELINES

SERVED = ("sd3", "flux", "flux2")
SETTINGS = (3.0, 1.2, 0.5)
IMAGE = 24  # tokens


def numbers(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nag_by_hand(positive: Tensor, negative: Tensor, strength: float, tau: float, alpha: float) -> Tensor:
    """Chen et al., on (batch, queries, heads x channels)."""
    guided = positive * (1 + strength) - negative * strength
    ratio = guided.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    return guided * (ratio.clamp(max=tau) / ratio) * alpha + positive * (1 - alpha)


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def setting(name: str, rows: int = 2) -> tuple[Any, dict[str, Any], OwnText]:
    """A denoiser in float64, the arguments of a call, and a text."""
    denoiser = CASES[name].make().double()
    call = {key: double(value) for key, value in CASES[name].call(12, 8).items()}
    pooled = numbers(rows, 12, seed=8).double() if "pooled_projections" in call else None
    return denoiser, call, OwnText(numbers(rows, TEXT, 20).double(), pooled=pooled)


def run(denoiser: Any, call: dict[str, Any], **changed: Any) -> Tensor:
    return denoiser(**{**call, **changed}, return_dict=False)[0]


# -- the formula -------------------------------------------------------------------------------------------------------


class TwoStreams:
    """Every block is called with the negative text, then with the prompt, whose attention is mixed."""

    def __init__(self, denoiser: Any, text_first: bool):
        self.text_first = text_first
        self.blocks = list(denoiser.transformer_blocks) + list(getattr(denoiser, "single_transformer_blocks", ()))
        self.negative: Any = None  # the stream of the negative text

    def first_text(self, denoiser: Any, call: dict[str, Any], text: OwnText) -> Tensor:
        """What the first block gets of the text."""
        found = []
        hook = self.blocks[0].register_forward_pre_hook(
            lambda module, args, kwargs: found.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
        run(denoiser, call, encoder_hidden_states=text.embeds.expand(len(call["hidden_states"]), -1, -1))
        hook.remove()
        return found[0]

    def __call__(self, denoiser: Any, call: dict[str, Any], text: OwnText) -> Tensor:
        start = self.first_text(denoiser, call, text)
        self.negative = start
        plain = {block: (block.forward, block.attn.forward) for block in self.blocks}
        for block in self.blocks:
            block.forward = self.twice(block, *plain[block])
        try:
            return run(denoiser, call)
        finally:
            for block in self.blocks:
                del block.forward

    def twice(self, block: Any, forward: Callable[..., Any], attend: Callable[..., Any]) -> Callable[..., Any]:
        def both(**given: Any) -> Any:
            inputs: list[dict[str, Any]] = []

            def seen(**options: Any) -> Any:
                inputs.append(options)
                return attend(**options)

            block.attn.forward = seen
            negative, _ = forward(**{**given, "encoder_hidden_states": self.negative})
            block.attn.forward = lambda **options: self.mixed(block.attn, attend, options, inputs[0])
            found = forward(**given)
            del block.attn.forward
            self.negative = negative
            return found

        return both

    def mixed(self, attn: Any, attend: Callable[..., Any], mine: dict[str, Any], theirs: dict[str, Any]) -> Any:
        if mine.get("encoder_hidden_states") is None:  # one stream of text and image
            out, other = attend(**mine), attend(**theirs)
            rows = slice(TEXT, None) if self.text_first else slice(0, IMAGE)
            out = out.clone()
            out[:, rows] = nag_by_hand(out[:, rows], other[:, rows], *SETTINGS)
            return out
        projection, attn.to_out = attn.to_out, nn.ModuleList([nn.Identity(), nn.Identity()])
        (image, context), (other, _) = attend(**mine), attend(**theirs)
        attn.to_out = projection
        return projection[1](projection[0](nag_by_hand(image, other, *SETTINGS))), context


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["sd3", "flux"])
@torch.no_grad()
def test_the_text_has_a_stream_of_its_own(name, rows):
    """By two streams of text through every block. The pooled text is the prompt's: blocks know one for both."""
    denoiser, call, text = setting(name, rows)
    if rows == 1:
        call["pooled_projections"] = call["pooled_projections"][:1].expand(2, -1)
    text = OwnText(text.embeds, pooled=call["pooled_projections"][:rows])
    wanted, plain = TwoStreams(denoiser, name == "flux")(denoiser, call, text), run(denoiser, call)
    with ea.apply(denoiser, None, mix=NAG(*SETTINGS, text=text, branch=None)):
        found = run(denoiser, call)
        with_names = denoiser(**call).sample
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert torch.equal(with_names, found) and found.shape == plain.shape
    assert not torch.allclose(plain, wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(run(denoiser, call), plain), "and it is undone"


class OneImage(TorchFunctionMode):
    """Torch's attention for a batch that was doubled by hand: the image of its second half is that of its first."""

    def __init__(self, text_first: bool, settings: tuple = SETTINGS, references: int = 0):
        super().__init__()
        self.image = slice(TEXT, None) if text_first else slice(0, IMAGE)
        self.references = references  # tokens behind those of the image
        self.settings = settings
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, *_ = (each.clone() for each in AttentionArguments(*args, **kwargs)[:3])
        if key.shape[2] == IMAGE:  # of the image to itself
            return func(*args, **kwargs)
        self.count += 1
        half = len(query) // 2
        for each in (query, key, value):
            each[half:, :, self.image] = each[:half, :, self.image]
        out = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value
        image = slice(self.image.start, key.shape[2] - self.references if self.references else self.image.stop)
        first, second = (each[:, :, image].transpose(1, 2).flatten(2) for each in (out[:half], out[half:]))
        mixed = nag_by_hand(first, second, *self.settings).unflatten(2, (query.shape[1], -1)).transpose(1, 2)
        out[half:, :, self.image] = out[:half, :, self.image]
        out[:half, :, image] = out[half:, :, image] = mixed
        return out


@pytest.mark.parametrize("name", SERVED)
@torch.no_grad()
def test_a_batch_doubled_by_hand(name):
    """With another pooled text, which changes the modulation of the negative text alone."""
    denoiser, call, text = setting(name)
    doubled = {"encoder_hidden_states": torch.cat([call["encoder_hidden_states"], text.embeds])}
    for key in ("hidden_states", "timestep", "guidance", "pooled_projections"):
        if key in call:
            other = text.pooled if key == "pooled_projections" else call[key]
            doubled[key] = torch.cat([call[key], other])
    with OneImage(name != "sd3") as by_hand:
        wanted = run(denoiser, call, **doubled)[:2]
    assert by_hand.count
    recorder, plain = ea.EntropyRecorder(), ea.EntropyRecorder()
    with ea.apply(denoiser, None, mix=NAG(*SETTINGS, text=text, branch=None)):
        found = run(denoiser, call)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    with ea.apply(denoiser, None, mix=NAG(*SETTINGS, text=text, branch=None), record=recorder):
        torch.testing.assert_close(run(denoiser, call), wanted, rtol=1e-6, atol=1e-6)
    with ea.apply(denoiser, None, record=plain):
        run(denoiser, call)
    first, other = recorder.to_dataframe(), plain.to_dataframe()
    assert len(first) == len(other), "the prompt's rows alone"
    assert first["mean"].iloc[0] == pytest.approx(other["mean"].iloc[0], rel=1e-5)


@torch.no_grad()
def test_reference_images_are_not_mixed():
    """Flux Kontext: the tokens of a reference image keep their answer, and belong to both texts."""
    denoiser, call, text = setting("flux")
    reference = call["img_ids"][:10].clone()
    reference[:, 0] = 1.0
    call["img_ids"] = torch.cat([call["img_ids"], reference])
    call["hidden_states"] = torch.cat([call["hidden_states"], numbers(2, 10, 8, seed=5).double()], dim=1)
    doubled = {key: torch.cat([call[key]] * 2) for key in ("hidden_states", "timestep")}
    doubled["encoder_hidden_states"] = torch.cat([call["encoder_hidden_states"], text.embeds])
    doubled["pooled_projections"] = torch.cat([call["pooled_projections"], text.pooled])
    with OneImage(True, references=10):
        wanted = run(denoiser, call, **doubled)[:2]
    with ea.apply(denoiser, None, mix=NAG(*SETTINGS, text=text, branch=None)):
        torch.testing.assert_close(run(denoiser, call), wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_layers_that_are_not_mixed_carry_the_text():
    """The text that reaches the second layer has been through the first."""
    denoiser, call, text = setting("sd3")

    class Second(OneImage):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.settings = (0.0, 1e9, 0.0) if self.count == 0 else SETTINGS  # alpha = 0 changes nothing
            return super().__torch_function__(func, types, args, kwargs)

    doubled = {
        "encoder_hidden_states": torch.cat([call["encoder_hidden_states"], text.embeds]),
        "pooled_projections": torch.cat([call["pooled_projections"], text.pooled]),
        **{key: torch.cat([call[key]] * 2) for key in ("hidden_states", "timestep")},
    }
    with Second(False):
        wanted = run(denoiser, call, **doubled)[:2]
    with ea.apply(denoiser, None, mix=NAG(*SETTINGS, text=text, branch=None, layers=r"blocks\.1\.attn$")):
        torch.testing.assert_close(run(denoiser, call), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", ["all", "image"])
@pytest.mark.parametrize("name", SERVED)
@torch.no_grad()
def test_the_scale_of_the_policy_is_for_both_texts(name, rows):
    """Led away from its own prompt nothing changes, whatever the scale of image and text is."""
    denoiser, call, text = setting(name)
    same = OwnText(call["encoder_hidden_states"], pooled=call.get("pooled_projections"))
    policy = Constant(1.6)
    with ea.apply(denoiser, policy, rows=rows, train_size=16):
        wanted = run(denoiser, call)
    with ea.apply(denoiser, policy, rows=rows, train_size=16, mix=NAG(*SETTINGS, text=same, branch=None)):
        torch.testing.assert_close(run(denoiser, call), wanted, rtol=1e-9, atol=1e-9)
    with ea.apply(denoiser, policy, rows=rows, train_size=16, mix=NAG(*SETTINGS, text=text, branch=None)):
        assert not torch.allclose(run(denoiser, call), wanted, atol=1e-4)

    def each(info: CallInfo) -> Tensor:  # (samples, heads)
        assert info.batch == 2
        return torch.tensor([[0.1, 0.3], [0.2, 0.4]], dtype=torch.float64)

    each.gives_sample_scales = True
    with ea.apply(denoiser, each, rows=rows):
        wanted = run(denoiser, call)
    with ea.apply(denoiser, each, rows=rows, mix=NAG(*SETTINGS, text=same, branch=None)):
        torch.testing.assert_close(run(denoiser, call), wanted, rtol=1e-9, atol=1e-9)


def test_a_text_in_rows_is_differentiable():
    denoiser, call, text = setting("flux", rows=1)
    embeds = text.embeds.clone().requires_grad_()

    def loss(embeds: Tensor) -> Tensor:
        mix = NAG(*SETTINGS, text=OwnText(embeds, pooled=text.pooled), branch=None)
        with ea.apply(denoiser, None, mix=mix):
            return run(denoiser, call).square().mean()

    (gradient,) = torch.autograd.grad(loss(embeds), embeds)
    step = numbers(*embeds.shape, seed=11).double() * 1e-4  # norms of keys are of float32
    with torch.no_grad():
        slope = loss(text.embeds + step) - loss(text.embeds - step)
    assert float(slope) == pytest.approx(2 * float((gradient * step).sum()), rel=2e-3)


# -- in pipelines ------------------------------------------------------------------------------------------------------


def own(name: str, rows: int = 1) -> OwnText:
    return OwnText(numbers(rows, TEXT, 20), pooled=None if name == "flux2" else numbers(rows, 12, seed=8))


@pytest.mark.parametrize("name", SERVED)
def test_without_guidance(name):
    case = PIPELINES[name]
    pipe, options = case.make(), case.off
    plain = case.run(pipe, **options)
    with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=own(name))):
        found = case.run(pipe, **options)
    with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=own(name), branch=None)):
        torch.testing.assert_close(case.run(pipe, **options), found)
    with ea.apply(pipe, None, mix=NAG(0.0, text=own(name))):
        torch.testing.assert_close(case.run(pipe, **options), plain, rtol=1e-4, atol=1e-4)
    assert found.isfinite().all() and not torch.allclose(found, plain, atol=1e-4)
    assert torch.equal(case.run(pipe, **options), plain)


@pytest.mark.parametrize("images", [1, 2])
def test_each_prompt_has_its_text(images):
    """Two prompts in Stable Diffusion 3, with guidance: further rows for the samples of the prompt alone."""
    case = PIPELINES["sd3"]
    pipe, text = case.make(), own("sd3", 2)
    prompts = {"prompt_embeds": numbers(2, TEXT, 20, seed=1), "pooled_prompt_embeds": numbers(2, 12, seed=2)}
    prompts |= {f"negative_{key}": torch.zeros_like(value) for key, value in prompts.items()}
    prompts = {key: value.repeat_interleave(images, 0) for key, value in prompts.items()}
    latents = numbers(2 * images, 4, 12, 8, seed=3)
    batches = []
    hook = pipe.transformer.pos_embed.register_forward_hook(lambda module, args, found: batches.append(len(found)))

    def generate(rows: slice, **options: Any) -> Tensor:
        return case.run(pipe, **{key: value[rows] for key, value in prompts.items()}, **options)

    with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=text)):
        found = generate(slice(None), latents=latents)
    assert set(batches) == {6 * images}, "unconditional, conditional, and their text"
    hook.remove()
    for prompt in range(2):
        alone = OwnText(text.embeds[prompt : prompt + 1], pooled=text.pooled[prompt : prompt + 1])
        with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=alone)):
            for image in range(prompt * images, (prompt + 1) * images):
                one = generate(slice(image, image + 1), latents=latents[image : image + 1])
                torch.testing.assert_close(found[image : image + 1], one, rtol=1e-4, atol=1e-4)


def test_calls_of_one_branch_after_the_other():
    """Flux with true guidance: the call of the negative prompt has no further rows."""
    case = PIPELINES["flux"]
    pipe, batches = case.make(), []
    hook = pipe.transformer.x_embedder.register_forward_hook(lambda module, args, found: batches.append(len(found)))
    with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=own("flux"), steps=(1,))):
        assert case.run(pipe).isfinite().all()
    hook.remove()
    assert batches == [1, 1, 2, 1]


@torch.no_grad()
def test_a_compiled_denoiser():
    denoiser, call, text = setting("flux")
    with ea.apply(denoiser, None, mix=NAG(*SETTINGS, text=text, branch=None), train_size=16):
        wanted = run(denoiser, call)
        torch._dynamo.reset()
        compiled = torch.compile(denoiser, backend="eager")
        torch.testing.assert_close(compiled(**call, return_dict=False)[0], wanted)
    torch._dynamo.reset()


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_the_models_that_take_rows_of_text():
    taken = [model for model in MODELS if model.text_rows is not None]
    assert {CASES[name].row for name in SERVED} == {model.denoiser for model in taken}
    for name in SERVED:
        denoiser = CASES[name].make()
        rule = next(model.text_rows for model in taken if model.denoiser == CASES[name].row)
        parameters = inspect.signature(type(denoiser).forward).parameters
        assert {*rule.repeated, *rule.refused, rule.pooled or "hidden_states"} <= set(parameters)


EMBEDS, POOLED = torch.ones(1, TEXT, 20), torch.ones(1, 12)


@pytest.mark.parametrize(
    ("name", "text", "changed", "reason"),
    [
        ("flux", OwnText(EMBEDS), {}, "pooled: the denoiser takes pooled_projections; give the text's"),
        ("flux2", OwnText(EMBEDS, pooled=POOLED), {}, "pooled: the denoiser takes none; leave it out"),
        (
            "flux",
            OwnText(EMBEDS[:, :3], pooled=POOLED),
            {},
            "embeds: expected 6 tokens, .* got 3; .* max_sequence_length",
        ),
        ("flux", OwnText(EMBEDS[..., :9], pooled=POOLED), {}, "embeds: expected 20 channels"),
        ("sd3", OwnText(EMBEDS, pooled=POOLED[:, :9]), {}, "pooled: expected 12 channels, got 9"),
        ("sd3", OwnText(EMBEDS, EMBEDS[..., 0], POOLED), {}, "mask: the denoiser is called without a mask"),
        ("sd3", OwnText(EMBEDS, pooled=POOLED), {"block_controlnet_hidden_states": [0]}, "a ControlNet has no part"),
        (
            "flux",
            OwnText(EMBEDS, pooled=POOLED),
            {"joint_attention_kwargs": {"scale": 1.0, "ip_adapter_image_embeds": []}},
            r"joint_attention_kwargs: expected no more than 'scale', got \['ip_adapter_image_embeds'\]",
        ),
    ],
)
@torch.no_grad()
def test_calls_that_do_not_fit_the_text(name, text, changed, reason):
    denoiser = CASES[name].make()
    with ea.apply(denoiser, None, mix=NAG(text=text, branch=None)), pytest.raises(Unroutable, match=reason):
        run(denoiser, {**CASES[name].call(12, 8), **changed})


@torch.no_grad()
def test_other_parts_of_a_call_that_are_refused():
    denoiser, call, text = setting("flux")
    mix = NAG(text=text, branch=None)
    for layers in ("all", "nothing|single_transformer_blocks"):
        mixed = NAG(text=text, branch=None, layers=layers)
        groups = ea.apply(denoiser, TACA(from_timestep=None), mix=mixed)
        with groups, pytest.raises(Unroutable, match="KeyGroups"):
            run(denoiser, call)
    with ea.apply(denoiser, None, mix=mix), pytest.raises(Unroutable, match="or masked, so it takes no second text"):
        from entropy_attn.routing.calls import DenoiserCall, LayerCall, LayerSelection
        from entropy_attn.routing.router import Router
        from entropy_attn.routing.text_rows import TextRows

        q, mask = torch.randn(3, 2, 6, 8), torch.ones(3, 1, 1, 6).bool()
        router = Router(None, LayerSelection(), None, None, mix=mix)
        running = DenoiserCall(0, (2, 2), image_tokens=4, batch=2, texts=TextRows((1,)))
        with router.denoiser_call(running), pytest.raises(Unroutable, match=r"shape \(2, 2, 6, 8\), not the rows"):
            router.attention(LayerCall("a", "joint", "first"), AttentionArguments(q[:2], q[:2], q[:2]))
        with router.denoiser_call(running):
            router.attention(LayerCall("a", "joint", "first"), AttentionArguments(q, q, q, mask))


def test_a_mix_that_answers_self_attention_with_a_text():
    denoiser, call, text = setting("sd3")

    class Everywhere(Mix):
        own_text = text

        def other(self, info: CallInfo) -> OwnText:
            return text

    mix = Everywhere(layers="attn2$")
    with ea.apply(denoiser, None, mix=mix), pytest.raises(Unroutable, match=r"attn2.*it attends to no text"):
        run(denoiser, call)
