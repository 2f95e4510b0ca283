"""A text of the mix's own, against a denoiser whose cross-attention layers are called for one text after the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

import entropy_attn as ea
from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.models import MODELS
from entropy_attn.mix import NAG, Mix, Other, OwnText
from entropy_attn.scale import CallInfo, Constant, OfBranch
from tests.support.tiny_denoisers import CASES, TEXT
from tests.support.tiny_models import TEXT_TOKENS, TEXT_WIDTH, denoise, make_pipe, make_text_pipe, make_unet, sample
from tests.support.tiny_pipelines import PIPELINES

SERVED = ("ldm", "pixart", "sana", "wan", "ltx")
SETTINGS = (3.0, 1.2, 0.5)


def text_of(rows: int, tokens: int, channels: int, seed: int = 7) -> Tensor:
    return torch.randn(rows, tokens, channels, generator=torch.Generator().manual_seed(seed))


def nag_by_hand(positive: Tensor, negative: Tensor, strength: float, tau: float, alpha: float) -> Tensor:
    """Chen et al., on (batch, queries, heads x channels)."""
    guided = positive * (1 + strength) - negative * strength
    ratio = guided.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    return guided * (ratio.clamp(max=tau) / ratio) * alpha + positive * (1 - alpha)


class Bare:
    """While entered, a layer returns what it would give to its output projection."""

    def __init__(self, module: Any):
        self.module = module

    def __enter__(self) -> nn.ModuleList:
        self.projection = self.module.to_out
        self.module.to_out = nn.ModuleList([nn.Identity(), nn.Identity()])
        return self.projection

    def __exit__(self, *exc_info: object) -> None:
        self.module.to_out = self.projection


def by_hand(denoiser: Any, run: Callable[..., Tensor], negative: dict[str, Any], settings: tuple) -> Tensor:
    """The denoiser's answer with both texts, by two calls of each cross-attention layer.

    run: calls the denoiser with other arguments of a text; negative: those of the negative text.
    """
    layers = [module for name, module in denoiser.named_modules() if name.endswith("attn2")]
    kept: dict[int, tuple[Any, Any]] = {}
    with_text = {}

    def bound(module: Any, args: tuple, kwargs: dict[str, Any]) -> inspect.BoundArguments:
        return inspect.signature(with_text[module]).bind(*args, **kwargs)

    def keep(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        given = bound(module, args, kwargs).arguments
        kept[id(module)] = given["encoder_hidden_states"], given.get("attention_mask")

    def twice(module: Any) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            given = bound(module, args, kwargs)
            with Bare(module) as projection:
                positive = with_text[module](*given.args, **given.kwargs)
                given.arguments["encoder_hidden_states"], given.arguments["attention_mask"] = kept[id(module)]
                other = with_text[module](*given.args, **given.kwargs)
            return projection[1](projection[0](nag_by_hand(positive, other, *settings)))

        return forward

    with_text.update({module: module.forward for module in layers})
    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in layers]
    run(**negative)
    for hook in hooks:
        hook.remove()
    assert len(kept) == len(layers) > 0
    for module in layers:
        module.forward = twice(module)
    try:
        return run()
    finally:
        for module in layers:
            del module.forward


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def setting(name: str, rows: int = 2, tokens: int = 5) -> tuple[Any, Callable[..., Tensor], OwnText, dict[str, Any]]:
    """A denoiser in float64, its call, a text and the arguments of a call with that text in place of the prompt."""
    case = CASES[name]
    denoiser = case.make().double()
    call = {key: double(value) for key, value in case.call(*case.sizes[-1]).items()}

    def run(**changed: Any) -> Tensor:
        return denoiser(**{**call, **changed}, return_dict=False)[0]

    embeds = text_of(rows, tokens, call["encoder_hidden_states"].shape[2]).double()
    arguments = {"encoder_hidden_states": embeds.expand(2, -1, -1)}
    mask = None
    if "encoder_attention_mask" in call:
        mask = torch.ones(rows, tokens, dtype=torch.bool)
        mask[-1, -2:] = False
        arguments["encoder_attention_mask"] = mask.double().expand(2, -1)
    return denoiser, run, OwnText(embeds, mask), arguments


# -- the formula -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", SERVED)
@torch.no_grad()
def test_nag_with_a_text_of_its_own(name, rows):
    """A text of another length than the prompt's, masked where the denoiser masks, in a denoiser alone."""
    denoiser, run, text, arguments = setting(name, rows)
    wanted, plain = by_hand(denoiser, run, arguments, SETTINGS), run()
    with ea.apply(denoiser, None, mix=NAG(*SETTINGS, text=text, branch=None)) as handle:
        torch.testing.assert_close(run(), wanted, rtol=1e-9, atol=1e-9)
        assert f"OwnText(embeds of shape ({rows}, 5, " in repr(handle) and "OwnText" in handle._repr_html_()
    assert not torch.allclose(plain, wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(run(), plain), "and it is undone"


@torch.no_grad()
def test_the_own_projections_of_a_layer():
    """Biases, norms of keys over all heads, low-rank updates, fused projections, norms of the text."""

    class LowRank(nn.Module):
        def __init__(self, base: nn.Linear):
            super().__init__()
            self.base = base
            self.down = nn.Linear(base.in_features, 2, bias=False, dtype=torch.float64)
            self.up = nn.Linear(2, base.out_features, bias=False, dtype=torch.float64)

        def forward(self, states: Tensor) -> Tensor:
            return self.base(states) + self.up(self.down(states))

    denoiser, run, text, arguments = setting("pixart")
    torch.manual_seed(3)
    for name, module in denoiser.named_modules():
        if name.endswith("attn2"):
            module.to_k, module.to_v = LowRank(module.to_k), LowRank(module.to_v)
            module.norm_k = nn.LayerNorm(16, dtype=torch.float64).requires_grad_(False)
            module.norm_k.weight.normal_()
            module.norm_cross = nn.LayerNorm(32, dtype=torch.float64)
    wanted = by_hand(denoiser, run, arguments, SETTINGS)
    with ea.apply(denoiser, None, mix=NAG(*SETTINGS, text=text, branch=None)):
        torch.testing.assert_close(run(), wanted, rtol=1e-9, atol=1e-9)
    fused, run, text, arguments = setting("ldm")
    wanted = by_hand(fused, run, arguments, SETTINGS)
    fused.fuse_qkv_projections()
    with ea.apply(fused, None, mix=NAG(*SETTINGS, text=text, branch=None)):
        torch.testing.assert_close(run(), wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_beside_the_image_of_an_ip_adapter():
    """The text is answered twice, the image prompt once."""
    unet = make_unet().double()
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    images = text_of(1, 4, TEXT_WIDTH, seed=9).double()[None]
    for module in layers:
        module.set_processor(IPAdapterAttnProcessor2_0(module.inner_dim, TEXT_WIDTH, num_tokens=(4,)).double().eval())

    def with_image(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "encoder_hidden_states": (kwargs["encoder_hidden_states"], [images])}

    hooks = [module.register_forward_pre_hook(with_image, with_kwargs=True) for module in layers]
    prompt, negative = text_of(1, 7, TEXT_WIDTH).double(), text_of(1, 5, TEXT_WIDTH, seed=8).double()
    latents = text_of(4, 16, 16).double()[None]

    def run() -> Tensor:
        return unet(latents, torch.tensor(10), encoder_hidden_states=prompt).sample

    mixed = []

    class Watching(NAG):
        def combine(self, out: Tensor, other: Tensor, value: Tensor, info: CallInfo) -> Tensor:
            mixed.append((info.layer, info.seqlen_k, value.shape[2]))
            return super().combine(out, other, value, info)

    plain = run()
    with ea.apply(unet, None, mix=Watching(*SETTINGS, text=negative, branch=None)):
        found = run()
    assert mixed and {(keys, values) for _, keys, values in mixed} == {(7, 7)}
    assert not any(layer.endswith(".image") for layer, *_ in mixed)
    with ea.apply(unet, None, mix=NAG(*SETTINGS, text=prompt, branch=None)):
        torch.testing.assert_close(run(), plain, rtol=1e-9, atol=1e-9)  # led away from itself
    assert not torch.allclose(found, plain, atol=1e-4)
    for hook in hooks:
        hook.remove()


def test_a_text_of_the_mix_is_differentiable():
    denoiser, run, text, _ = setting("pixart")
    embeds = text.embeds.clone().requires_grad_()

    def loss(embeds: Tensor) -> Tensor:
        with ea.apply(denoiser, None, mix=NAG(*SETTINGS, text=OwnText(embeds, text.mask), branch=None)):
            return run().square().mean()

    (gradient,) = torch.autograd.grad(loss(embeds), embeds)
    step = text_of(*embeds.shape, seed=11).double() * 1e-5
    with torch.no_grad():
        slope = loss(text.embeds + step) - loss(text.embeds - step)
    assert float(slope) == pytest.approx(2 * float((gradient * step).sum()), rel=1e-5)
    assert gradient[-1, -2:].abs().max() == 0, "masked"


# -- in pipelines ------------------------------------------------------------------------------------------------------


def embeds_of(batch: int) -> Tensor:
    """Those of `sample`: prompts, then negative prompts."""
    return torch.randn(2, batch, TEXT_TOKENS, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("family", "batch"), [("sd1", 1), ("sd1", 3), ("sd2", 2), ("sdxl", 2)])
def test_the_negative_text_of_the_batch_gives_what_the_batch_gives(family, batch):
    pipe = make_pipe(family)
    with ea.apply(pipe, None, mix=NAG(*SETTINGS)):
        wanted = sample(pipe, batch=batch)
    with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=embeds_of(batch)[1])):
        torch.testing.assert_close(sample(pipe, batch=batch), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sample(pipe, batch=batch), wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["pixart", "sana", "ltx"])
def test_the_negative_text_and_mask_of_the_batch(name):
    case = PIPELINES[name]
    pipe, call = case.make(), case.call()
    embeds = {
        key: text_of(*call[key].shape, seed=seed)
        for seed, key in enumerate(("prompt_embeds", "negative_prompt_embeds"))
    }
    masks = {key: call[key].clone() for key in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    masks["prompt_attention_mask"][:, -1] = 0
    masks["negative_prompt_attention_mask"][:, -2:] = 0
    with ea.apply(pipe, None, mix=NAG(*SETTINGS)):
        wanted = case.run(pipe, **masks, **embeds)
    text = OwnText(embeds["negative_prompt_embeds"], masks["negative_prompt_attention_mask"])
    with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=text)):
        torch.testing.assert_close(case.run(pipe, **masks, **embeds), wanted, rtol=1e-4, atol=1e-4)
    unmasked = OwnText(text.embeds, torch.ones_like(text.mask))
    with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=unmasked)):
        assert not torch.allclose(case.run(pipe, **masks, **embeds), wanted, atol=1e-4)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_each_prompt_has_its_text(guidance, images):
    """With and without classifier-free guidance; each image as if it were alone."""
    pipe, batch = make_pipe(), 3
    prompts, negatives = embeds_of(batch)
    own = text_of(batch, 4, TEXT_WIDTH)
    latents = torch.randn(batch * images, 4, 16, 16, generator=torch.Generator().manual_seed(1))

    def run(rows: Any, **options: Any) -> Tensor:
        texts = {"prompt_embeds": prompts[rows], "negative_prompt_embeds": negatives[rows]}
        return sample(pipe, guidance_scale=guidance, **texts, **options)

    with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=own)):
        found = run(slice(None), latents=latents, num_images_per_prompt=images)
    for prompt in range(batch):
        with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=own[prompt : prompt + 1])):
            for image in range(prompt * images, (prompt + 1) * images):
                alone = run(slice(prompt, prompt + 1), latents=latents[image : image + 1])
                torch.testing.assert_close(found[image : image + 1], alone, rtol=1e-4, atol=1e-4)
    repeated = own.repeat_interleave(images, 0)  # as `encode_prompt` returns it
    with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=repeated)):
        again = run(slice(None), latents=latents, num_images_per_prompt=images)
    torch.testing.assert_close(again, found)


def test_the_branch_says_who_is_mixed():
    """In the first step alone, by what each branch predicts."""
    pipe, own = make_pipe(), text_of(1, 4, TEXT_WIDTH)
    predicted: list[Tensor] = []
    pipe.unet.register_forward_hook(lambda module, args, found: predicted.append(found[0]))

    def first(**options: Any) -> Tensor:
        predicted.clear()
        if not options:
            sample(pipe, batch=2)
        else:
            with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=own, **options)):
                sample(pipe, batch=2)
        return predicted[0]

    plain, cond, uncond, both = first(), first(branch="cond"), first(branch="uncond"), first(branch=None)
    torch.testing.assert_close(cond[:2], plain[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(uncond[2:], plain[2:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([uncond[:2], cond[2:]]), both, rtol=1e-5, atol=1e-5)
    policy = OfBranch(Constant(1.0), "cond")  # with it the branches are known, and a text may be for a row all the same
    with ea.apply(pipe, policy, mix=NAG(*SETTINGS, text=own.expand(4, -1, -1), branch=None)):
        predicted.clear()
        sample(pipe, batch=2)
    torch.testing.assert_close(predicted[0], both, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(cond[2:], plain[2:], atol=1e-3) and not torch.allclose(uncond[:2], plain[:2], atol=1e-3)
    assert torch.equal(first(steps=(1,)), plain)
    torch.testing.assert_close(first(layers="nowhere|up_blocks.1.*attn1"), plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_text_that_no_sample_needs_costs_nothing():
    """At other steps, and in calls of the other branch."""
    pipe, tokens, own = make_pipe(), [], text_of(1, 4, TEXT_WIDTH)
    keys = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    keys.register_forward_hook(lambda module, args, found: tokens.append(args[0].shape[1]))
    with ea.apply(pipe, None, mix=NAG(text=own, steps=(1,))):
        sample(pipe, steps=3)
    assert tokens == [7, 11, 7]
    tokens.clear()
    with ea.apply(pipe, None, mix=NAG(text=own, branch="uncond")):
        sample(pipe, steps=1, guidance_scale=1.0)
    assert tokens == [7]


def test_calls_of_one_branch_after_the_other():
    """Wan calls its denoiser for each branch: what the route through the batch cannot serve."""
    case = PIPELINES["wan"]
    pipe, plain = case.make(), case.run(case.make())
    negative = case.call()["negative_prompt_embeds"]
    mixed = []

    class Watching(NAG):
        def combine(self, out: Tensor, other: Tensor, value: Tensor, info: CallInfo) -> Tensor:
            mixed.append((info.step, info.branches))
            return super().combine(out, other, value, info)

    with ea.apply(pipe, None, mix=Watching(*SETTINGS, text=negative)):
        found = case.run(pipe)
    assert set(mixed) == {(step, ("cond",)) for step in (0, 1)}
    assert found.isfinite().all() and not torch.allclose(found, plain, atol=1e-4)
    with ea.apply(pipe, None, mix=NAG(0.0, text=negative)):
        torch.testing.assert_close(case.run(pipe), plain, rtol=1e-4, atol=1e-4)
    with ea.apply(pipe, None, mix=NAG(*SETTINGS, text=negative)):
        assert not torch.allclose(case.run(pipe, **case.off), case.run(case.make(), **case.off), atol=1e-4)


def test_recorders_and_policies_see_the_prompt_alone():
    pipe = make_text_pipe()
    own = text_of(1, 12, TEXT_WIDTH)

    def recorded(mix: Mix | None) -> tuple[Any, Any, Any]:
        entropies, maps, infos = ea.EntropyRecorder(), ea.MapRecorder(tokens=("b",)), []

        def policy(info: CallInfo) -> float:
            infos.append(info)
            return 1.3 * info.head_dim**-0.5

        with ea.apply(pipe, policy, [entropies, maps], layers="all", mix=mix):
            generator = torch.Generator().manual_seed(4)
            pipe("a b c", height=32, width=32, num_inference_steps=1, output_type="latent", generator=generator)
        return entropies.to_dataframe(), maps, infos

    class First(NAG):
        """The first answer stays, so that all layers see the same."""

        def combine(self, out: Tensor, other: Tensor, value: Tensor, info: CallInfo) -> Tensor:
            assert not torch.allclose(out, other, atol=1e-3)
            return out

    (table, maps, infos), (wanted, wanted_maps, wanted_infos) = recorded(First(text=own)), recorded(None)
    assert [info.seqlen_k for info in infos] == [info.seqlen_k for info in wanted_infos]
    assert table["mean"].to_numpy() == pytest.approx(wanted["mean"].to_numpy(), rel=1e-4)
    torch.testing.assert_close(maps.heat_map("b"), wanted_maps.heat_map("b"), rtol=1e-4, atol=1e-5)


def test_the_scale_of_the_policy_is_for_both_answers():
    denoiser, run, text, arguments = setting("pixart")

    def scaled(factor: float) -> None:
        for name, module in denoiser.named_modules():
            if name.endswith("attn2"):
                module.to_k.weight.mul_(factor)
                module.to_k.bias.mul_(factor)

    with torch.no_grad():
        scaled(1.7)
        wanted = by_hand(denoiser, run, arguments, SETTINGS)
        scaled(1 / 1.7)
        with ea.apply(denoiser, Constant(1.7), layers="cross", mix=NAG(*SETTINGS, text=text, branch=None)):
            torch.testing.assert_close(run(), wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_compiled_denoiser():
    denoiser, run, text, _ = setting("pixart")
    mix = NAG(*SETTINGS, text=text, branch=None)
    with ea.apply(denoiser, None, mix=mix, train_size=16):
        wanted = run()
        torch._dynamo.reset()
        compiled = torch.compile(denoiser, backend="eager")
        call = {key: double(value) for key, value in CASES["pixart"].call(*CASES["pixart"].sizes[-1]).items()}
        torch.testing.assert_close(compiled(**call, return_dict=False)[0], wanted)
    torch._dynamo.reset()


@torch.no_grad()
def test_a_weaker_pass_may_have_a_text():
    """Positional arguments, half precision, and a routing that `WeakPassGuidance` uses."""
    unet = make_unet()
    from entropy_attn.integrations.diffusers.one_pass import OnePass

    mix = NAG(*SETTINGS, text=text_of(1, 4, TEXT_WIDTH).to(torch.bfloat16), branch=None)
    plain = denoise(unet)
    with ea.apply(unet, None, mix=mix):
        wanted = denoise(unet)
    routing = OnePass(unet, None, mix, "self")
    routing.put_on(0, 1)
    assert torch.equal(denoise(unet), wanted)
    routing.take_off()
    assert torch.equal(denoise(unet), plain) and not torch.equal(plain, wanted)


@dataclass(frozen=True)
class Between(Mix):
    """A mix of one's own: halfway to another text."""

    text: OwnText = OwnText(torch.ones(1, 3, 20, dtype=torch.float64))  # noqa: RUF009  (immutable)
    layers: str = "cross"

    @property
    def own_text(self) -> OwnText:
        return self.text

    def other(self, info: CallInfo) -> Other | None:
        return self.text

    def combine(self, out: Tensor, other: Tensor, value: Tensor, info: CallInfo) -> Tensor:
        return (out + other) / 2


@torch.no_grad()
def test_a_mix_of_ones_own():
    denoiser, run, text, arguments = setting("wan")
    wanted = by_hand(denoiser, run, arguments, (-0.5, 1e9, 1.0))  # positive / 2 + negative / 2
    with ea.apply(denoiser, None, mix=Between(text=text)):
        torch.testing.assert_close(run(), wanted, rtol=1e-9, atol=1e-9)
    with (
        ea.apply(denoiser, None, mix=Between(text=text, layers="all")),
        pytest.raises(Unroutable, match="it attends to no text"),
    ):
        run()

    class Another(Between):
        def other(self, info: CallInfo) -> Other:
            return OwnText(text.embeds)

    with (
        ea.apply(denoiser, None, mix=Another(text=text)),
        pytest.raises(ValueError, match="the OwnText of its own_text"),
    ):
        run()


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_the_models_that_take_a_second_text():
    assert {CASES[name].row for name in SERVED} == {model.denoiser for model in MODELS if model.second_text}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qwen", "attended to together with the image; it is served in UNet2DConditionModel, .*a negative prompt"),
        ("lumina", "does not take two texts"),
        ("hunyuan-dit", "does not take two texts"),
        ("if", "layer 'down_blocks.* has added keys and values"),
        ("wan-i2v", "layer 'blocks.0.attn2' has added keys and values"),
    ],
)
def test_denoisers_that_take_one_text(name, reason):
    mix = NAG(text=torch.ones(1, 3, 20), branch=None)
    with pytest.raises(Unroutable, match=f"mix=NAG with a text of its own: .*{reason}"):
        ea.apply(CASES[name].make(), None, mix=mix)


def test_unets_that_take_one_text():
    mix = NAG(text=torch.ones(1, 3, TEXT_WIDTH), branch=None)
    pools = make_unet(addition_embed_type="text", addition_embed_type_num_heads=4, encoder_hid_dim=TEXT_WIDTH)
    with pytest.raises(Unroutable, match="addition_embed_type='text' uses the text"):
        ea.apply(pools, None, mix=mix)
    normalizes = make_unet()
    layer = normalizes.mid_block.attentions[0].transformer_blocks[0].attn2
    layer.norm_cross = nn.GroupNorm(4, TEXT_WIDTH)  # cross_attention_norm="group_norm"
    with pytest.raises(Unroutable, match=r"layer 'mid_block.*attn2' normalizes the text over all of its tokens"):
        ea.apply(normalizes, None, mix=mix)


@pytest.mark.parametrize(
    ("name", "text", "changed", "reason"),
    [
        ("pixart", OwnText(torch.ones(1, 3, 21), torch.ones(1, 3)), {}, r"embeds: expected 20 channels.*got 21"),
        ("pixart", OwnText(torch.ones(1, 3, 20)), {}, r"encoder_attention_mask; give OwnText\(embeds, mask\)"),
        ("wan", OwnText(torch.ones(1, 3, 20), torch.ones(1, 3)), {}, "without a mask of the text; leave it out"),
        ("wan", OwnText(torch.ones(3, 3, 20)), {}, "has 3 texts and the batch 2 rows, whose branches are not known"),
        (
            "pixart",
            OwnText(torch.ones(1, 3, 20), torch.ones(1, 3)),
            {"encoder_attention_mask": torch.zeros(2, 1, TEXT)},
            r"encoder_attention_mask: expected a tensor of shape \(2, 6\), got \(2, 1, 6\)",
        ),
    ],
)
@torch.no_grad()
def test_calls_that_do_not_fit_the_text(name, text, changed, reason):
    denoiser, case = CASES[name].make(), CASES[name]
    with ea.apply(denoiser, None, mix=NAG(text=text, branch=None)), pytest.raises(Unroutable, match=reason):
        denoiser(**{**case.call(*case.sizes[0]), **changed}, return_dict=False)


def test_texts_that_do_not_fit_the_images():
    pipe = make_pipe()
    with ea.apply(pipe, None, mix=NAG(text=torch.ones(2, 3, TEXT_WIDTH))):
        with pytest.raises(Unroutable, match="embeds has 2 texts for 3 images; give one, or one for each prompt"):
            sample(pipe, batch=3)
        assert sample(pipe, batch=2).isfinite().all()


@torch.no_grad()
def test_a_processor_that_attends_to_something_else():
    class Registers:
        """Two more keys than the text has."""

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
            from torch.nn import functional as F

            text = F.pad(encoder_hidden_states, (0, 0, 0, 2))
            query, key, value = (
                layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for layer, states in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
            )
            return attn.to_out[0](F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    unet = make_unet()
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(Registers())
    mix = NAG(text=torch.ones(1, 3, TEXT_WIDTH), branch=None)
    with ea.apply(unet, None, mix=mix), pytest.raises(Unroutable, match="attends to 12 keys, not to the 7 tokens"):
        denoise(unet)


def test_spread_tokens_are_refused(monkeypatch):
    from entropy_attn.integrations.diffusers import handle

    unet = make_unet()
    with ea.apply(unet, None, mix=NAG(text=torch.ones(1, 3, TEXT_WIDTH), branch=None)):
        monkeypatch.setattr(handle, "parallel_config_of", lambda denoiser: object())
        with pytest.raises(Unroutable, match="own: its tokens are spread over devices"):
            denoise(unet)
