"""What policies are told of a call through whole pipelines, and scales of their own for the samples of a branch."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers import apply
from entropy_attn.integrations.diffusers.steps import number_of_steps, scheduler_sigma
from entropy_attn.recorders.base import UnknownParts
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.recorders.response import ResponseRecorder
from entropy_attn.routing.calls import AttentionArguments
from entropy_attn.scale import Constant, DyPE, Layers, OfBranch, Schedule, Steps, TargetEntropy
from tests.support.tiny_denoisers import CASES, TEXT
from tests.support.tiny_models import Spy, make_pipe, sample
from tests.support.tiny_pipelines import PIPELINES

IMAGE = 24  # tokens of the tiny transformers


def asking(*names: str, answer: Any = lambda info: None) -> Spy:
    spy = Spy(answer)
    for name in names:
        setattr(spy, name, True)
    return spy


class ScaledSamples(TorchFunctionMode):
    """Torch's attention with factors (B, H) on the logits of calls with this many keys, in place of torch's."""

    def __init__(self, keys: int, factors: Tensor, rows: slice = slice(None)):
        super().__init__()
        self.keys, self.factors, self.rows, self.entropies = keys, factors, rows, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, mask, *_ = AttentionArguments(*args, **kwargs)
        if key.shape[-2] != self.keys:
            return func(*args, **kwargs)
        assert mask is None
        s = query @ key.mT * query.shape[-1] ** -0.5
        s[:, :, self.rows] *= self.factors[:, :, None, None]
        p = s.softmax(-1)
        self.entropies.append(torch.special.entr(p).sum(-1))
        return p @ value


# -- when --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd3", "flux", "pixart", "zimage"])
def test_the_noise_level_and_the_number_of_steps(name):
    case = PIPELINES[name]
    pipe, spy, blind = case.make(), asking("needs_sigma", "needs_num_steps"), Spy()
    with apply(pipe, spy, layers="all"):
        case.run(pipe)
    seen = list(dict.fromkeys((info.step, info.sigma, info.num_steps) for info in spy.calls))
    if name == "pixart":  # DDIM, which has no sigmas
        signal = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps].double()
        sigmas = ((1 - signal) / signal).sqrt().tolist()
    else:
        sigmas = pipe.scheduler.sigmas.tolist()
    assert seen == [(step, pytest.approx(sigmas[step], rel=1e-6), 2) for step in range(2)]
    with apply(pipe, blind, layers="all"):
        case.run(pipe)
    assert {info.sigma for info in blind.calls} == {None}


@pytest.mark.parametrize(
    "kind", ["EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "DDIM", "PNDM", "UniPCMultistep"]
)
def test_every_scheduler_counts_as_steps_are_counted(kind):
    pipe, spy = make_pipe(), asking("needs_sigma")
    pipe.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(pipe.scheduler.config)
    with apply(pipe, spy):
        sample(pipe, steps=4)
    assert {info.num_steps for info in spy.calls} == {1 + max(info.step for info in spy.calls)}
    sigmas = list(dict.fromkeys((info.step, info.sigma) for info in spy.calls))
    assert len(sigmas) == spy.calls[0].num_steps and [each for _, each in sigmas] == sorted(
        (each for _, each in sigmas), reverse=True
    )
    timesteps = pipe.scheduler.timesteps.long()
    signal = pipe.scheduler.alphas_cumprod.double()[timesteps]
    wanted = ((1 - signal) / signal).sqrt().tolist()
    assert [each for _, each in sigmas] == pytest.approx(wanted, rel=0.05), "the same of all of them"


def test_image_to_image_and_a_first_part_count_their_own_steps():
    pipe, spy = make_pipe("sdxl"), Spy()
    image = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components, requires_aesthetics_score=False)
    image.set_progress_bar_config(disable=True)
    with apply(image, spy):
        sample_sdxl_image(image, strength=0.5, steps=4)
    assert {info.num_steps for info in spy.calls} == {2} and {info.step for info in spy.calls} == {0, 1}
    spy = Spy()
    with apply(pipe, spy):
        sample(pipe, steps=4, denoising_end=0.5)
    assert {info.num_steps for info in spy.calls} == {None}, "the table has more steps than are made"
    spy = asking("needs_branches")
    with apply(pipe, spy):
        sample(pipe, steps=4, denoising_end=0.5)
    assert {info.num_steps for info in spy.calls} == {1 + max(info.step for info in spy.calls)}


def sample_sdxl_image(pipe: Any, strength: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(3)
    embeds, pooled = torch.randn(2, 1, 7, 32, generator=generator), torch.randn(2, 1, 32, generator=generator)
    pipe(
        image=torch.rand(1, 3, 32, 32),
        strength=strength,
        num_inference_steps=steps,
        prompt_embeds=embeds[0],
        negative_prompt_embeds=embeds[1],
        pooled_prompt_embeds=pooled[0],
        negative_pooled_prompt_embeds=pooled[1],
        output_type="latent",
    )


def test_what_is_not_known_is_none():
    denoiser, spy = CASES["flux"].make(), asking("needs_sigma", "needs_timestep", "needs_num_steps")
    with apply(denoiser, spy), torch.no_grad():
        denoiser(**CASES["flux"].call(12, 8))
    assert {(info.sigma, info.num_steps, info.branches) for info in spy.calls} == {(None, None, None)}
    assert {info.timestep for info in spy.calls} != {None}, "that is in the arguments"
    pipe = make_pipe()
    assert scheduler_sigma(None, torch.tensor(5), 1.0) is None
    assert scheduler_sigma(pipe, torch.tensor([5, 6]), 1.0) is None, "samples at different timesteps"
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=True)
    assert scheduler_sigma(pipe, pipe.scheduler.timesteps[0], 1.0) == math.inf, "noise alone"
    pipe.scheduler = diffusers.KDPM2DiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(3)
    assert scheduler_sigma(pipe, pipe.scheduler.timesteps[1], 1.0) is None, "every other sigma is interpolated"
    assert number_of_steps(pipe.scheduler, torch.tensor(-7.0), None, may_wait=True) is None


def test_schedules_through_a_pipeline():
    """A window of sigma, of timesteps and of the progress that is the first of two steps is that step."""
    case = PIPELINES["sd3"]
    pipe = case.make()
    sharp = Constant(3.0)
    with apply(pipe, Steps(sharp, 0, 1)):
        wanted = case.run(pipe)
    sigma, timestep = pipe.scheduler.sigmas[1].item(), pipe.scheduler.timesteps[1].item()
    for policy in (
        Schedule(sharp, (None, sigma)),
        Schedule(sharp, (None, timestep), "timestep"),
        Schedule(sharp, (0.0, 0.5), "progress"),
    ):
        with apply(pipe, policy):
            torch.testing.assert_close(case.run(pipe), wanted)
    assert not torch.allclose(wanted, case.run(pipe))


@pytest.mark.parametrize(
    "name", ["ldm", "if", "unet2d", "lumina2", "zimage", "sd3", "flux", "wan-i2v", "hunyuan-video"]
)
@torch.no_grad()
def test_blocks_are_numbered_as_the_model_runs_them(name):
    denoiser, spy = CASES[name].make(), Spy()
    with apply(denoiser, spy, layers="all", train_size=16):
        denoiser(**CASES[name].call(*CASES[name].sizes[0]))
    numbers = [info.block for info in spy.calls]
    assert numbers == sorted(numbers) and set(numbers) == set(range(spy.calls[0].num_blocks))
    blocks = {(info.layer.removesuffix(".image").rpartition(".")[0], info.block) for info in spy.calls}
    if name not in ("if", "unet2d"):  # whose layers are in lists
        assert len(blocks) == spy.calls[0].num_blocks


# -- for whom ----------------------------------------------------------------------------------------------------------

NAMES = {"uncond", "cond"}


@pytest.mark.parametrize("name", ["sd3", "pixart", "flux", "mochi", "qwen"])
def test_branches_of_the_samples(name):
    case = PIPELINES[name]
    pipe, spy = case.make(), asking("needs_branches")
    with apply(pipe, spy, layers="all", train_size=None if case.train else 16):
        case.run(pipe)
    seen = {info.branches for info in spy.calls}
    if name in ("flux", "qwen"):  # one call for each branch
        assert seen == {("cond",), ("uncond",)}
    elif name == "mochi":  # one attention call for each sample
        assert {("uncond",), ("cond",)} <= seen and all(
            len(each) == info.batch for info in spy.calls for each in [info.branches]
        )
    else:
        assert seen == {("uncond", "cond")} and {info.batch for info in spy.calls} == {2}
    spy = asking("needs_branches")
    with apply(pipe, spy, layers="all"):
        case.run(pipe, **case.off)
    assert {name for info in spy.calls for name in info.branches} == {"all"}


SELF = r"(down_blocks\.0|up_blocks\.1).*attn1$"  # of 256 tokens
WEAK = Layers({SELF: Constant((0.5, 0.5, 0.2, 0.2, 0.5, 0.5, 3.0, 3.0))})


def weak_factors(batch: int, heads: Tensor, uncond: slice) -> Tensor:
    factors = torch.ones(2 * batch, len(heads))
    factors[uncond] = heads
    return factors


@pytest.mark.parametrize("batch", [1, 3])
def test_a_temperature_in_chosen_layers_of_the_weak_branch(batch):
    """As entropy rectifying guidance has it; recorders see the scale of each branch."""
    pipe = make_pipe("sd1")
    heads = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads
    factor = torch.linspace(0.4, 2.0, heads)
    with ScaledSamples(256, weak_factors(batch, factor, slice(0, batch))) as written:
        wanted = sample(pipe, batch=batch)
    policy, recorder = OfBranch(Layers({SELF: Constant(tuple(factor.tolist()))}), "uncond"), EntropyRecorder()
    with apply(pipe, policy):
        torch.testing.assert_close(sample(pipe, batch=batch), wanted, rtol=1e-4, atol=1e-4)
    with apply(pipe, policy, record=recorder):
        torch.testing.assert_close(sample(pipe, batch=batch), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sample(pipe, batch=batch), wanted, atol=1e-3)
    table = recorder.to_dataframe()
    table = table[table["layer"].str.match(SELF) & (table["kind"] == "self")]
    root = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.inner_dim // heads
    for branch, factors in (("uncond", factor), ("cond", torch.ones(heads))):
        rows = table[table["branch"] == branch]
        scales = torch.tensor(rows["scale"].to_numpy()).view(-1, heads)
        torch.testing.assert_close(scales, (factors.double() * root**-0.5).expand_as(scales), rtol=1e-6, atol=0)
    calls = torch.stack(written.entropies).unflatten(1, (2, batch)).mean((2, 4)).double()  # (calls, branch, head)
    means = torch.tensor(table["mean"].to_numpy()).view(-1, 2, heads)
    torch.testing.assert_close(means, calls, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", ["all", "image"])
def test_a_branch_of_joint_attention(rows):
    case = PIPELINES["sd3"]
    pipe = case.make()
    factors = torch.tensor([[0.3, 0.3], [1.0, 1.0]])
    with ScaledSamples(IMAGE + TEXT, factors, slice(0, IMAGE) if rows == "image" else slice(None)):
        wanted = case.run(pipe)
    with apply(pipe, Layers({r"attn$": OfBranch(Constant(0.3), "uncond")}), rows=rows):
        torch.testing.assert_close(case.run(pipe), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(case.run(pipe), wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["flux", "mochi"])
def test_branches_that_are_called_one_after_the_other(name):
    """In calls of the denoiser of their own, or of attention."""
    case = PIPELINES[name]
    pipe = case.make()
    with apply(pipe, OfBranch(Constant(0.3), "uncond")):
        weak = case.run(pipe)
    with apply(
        pipe,
        asking("needs_branches", answer=lambda info: 0.3 * info.head_dim**-0.5 if info.branch == "uncond" else None),
    ):
        wanted = case.run(pipe)
    torch.testing.assert_close(weak, wanted)
    with apply(pipe, OfBranch(Constant(0.3), "cond")):
        strong = case.run(pipe)
    with apply(pipe, Constant(0.3)):
        both = case.run(pipe)
    plain = case.run(pipe)
    results = [plain, weak, strong, both]
    assert all(not torch.allclose(a, b) for i, a in enumerate(results) for b in results[:i])


def test_any_policy_may_answer_for_each_sample():
    """Without branches: a scale for each picture of a batch."""
    pipe = make_pipe("sd1")
    heads = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads
    factors = torch.rand(4, heads) + 0.5
    with ScaledSamples(256, factors):
        wanted = sample(pipe, batch=2)
    with apply(pipe, lambda info: factors * info.head_dim**-0.5, layers=SELF):
        torch.testing.assert_close(sample(pipe, batch=2), wanted, rtol=1e-4, atol=1e-4)
    response = ResponseRecorder()
    with apply(pipe, lambda info: factors * info.head_dim**-0.5, layers=SELF, record=response):
        torch.testing.assert_close(sample(pipe, batch=2), wanted, rtol=1e-4, atol=1e-4)
    table = response.to_dataframe()
    table = table[table["layer"].str.match(SELF)]
    root = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.inner_dim // heads
    scales = torch.tensor(table["scale"].to_numpy()).view(-1, 2, heads)
    wanted_scales = factors.view(2, 2, heads).mean(1) * root**-0.5
    torch.testing.assert_close(scales, wanted_scales.double().expand_as(scales), rtol=1e-5, atol=0)


def test_the_entropy_is_held_in_one_branch():
    pipe, recorder = make_pipe(), EntropyRecorder()
    with apply(pipe, OfBranch(TargetEntropy(clamp=(None, None)), "cond"), record=recorder, train_size=16):
        sample(pipe, steps=3)
    table = recorder.to_dataframe()
    table = table[(table["kind"] == "self") & (table["step"] > 0)]
    default = recorder.to_dataframe().query("kind == 'self' and step == 0").groupby("layer")["scale"].first()
    factor = table["scale"].to_numpy() / default[table["layer"]].to_numpy()
    assert (factor[table["branch"] == "cond"] > 1.01).all() and (
        abs(factor[table["branch"] == "uncond"] - 1) < 1e-6
    ).all()


def test_what_is_refused():
    pipe, denoiser = make_pipe(), CASES["flux"].make()
    with pytest.raises(ValueError, match=r"needs the pipeline, to know which rows are of the prompt.*needs_branches"):
        apply(denoiser, OfBranch(Constant(0.5), "uncond"))
    with apply(pipe, OfBranch(Constant(0.5), "uncond")):
        with pytest.raises(UnknownParts, match="Give a policy for all rows, without needs_branches"):
            generator = torch.Generator().manual_seed(0)
            text = torch.randn(2, 7, 32, generator=generator)
            pipe.unet(torch.randn(2, 4, 16, 16), torch.tensor(5), encoder_hidden_states=text)
    with apply(pipe, asking("needs_branches"), layers="all"):  # a processor that makes rows of windows
        original = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor

        class Windows:
            def __call__(self, attn, hidden_states, *args, **kwargs):
                windows = hidden_states.unflatten(1, (2, -1)).flatten(0, 1)
                out = original(attn, windows, *args, **kwargs)
                return out.unflatten(0, (-1, 2)).flatten(1, 2)

        pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = Windows()
        with pytest.raises(Unroutable, match="4 rows and the denoiser's batch 2"):
            sample(pipe)


# -- compiled ----------------------------------------------------------------------------------------------------------

OF_TIME = Schedule(Constant(2.0), (0.2, 0.6), "progress", otherwise=Schedule(DyPE(train_tokens=8), (1.0, 0.1)))


@torch.no_grad()
@pytest.mark.parametrize(("policy", "alone"), [(OF_TIME, True), (OfBranch(Constant(0.5), "uncond"), False)])
def test_no_graph_is_made_for_a_step(policy, alone):
    """A policy that reads all of the time is in the one graph of the denoiser; one of branches stays outside."""
    case = PIPELINES["sd3"]
    pipe, graphs, made = case.make(), [], []
    denoiser = pipe.transformer

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def generate() -> Tensor:
        call = {**case.call(), "generator": torch.Generator().manual_seed(4), "output_type": "latent"}
        call["callback_on_step_end"] = lambda *_: made.append(len(graphs)) or {}
        return pipe(**call, num_inference_steps=5, return_dict=False)[0]

    with apply(pipe, policy):
        eager = generate()
        made.clear()
        torch._dynamo.reset()
        pipe.transformer = torch.compile(denoiser, backend=backend)
        torch.testing.assert_close(generate(), eager, rtol=1e-3, atol=1e-4)
        torch._dynamo.reset()
    assert made[0] >= 1 and set(made) == {made[0]}, "none after the first step"
    assert not alone or made[0] == 1
    pipe.transformer = denoiser
    assert not torch.allclose(generate(), eager)


def test_a_scale_for_each_sample_in_a_graph_is_refused():
    case = PIPELINES["sd3"]
    pipe = case.make()
    pipe.transformer.compile(backend="eager")
    with apply(pipe, lambda info: torch.full((2, info.num_heads), 0.1)):
        with pytest.raises(ValueError, match="gives_sample_scales = True"):
            case.run(pipe)
    torch._dynamo.reset()


def test_scales_are_recorded_in_the_order_of_the_branches():
    """A batch whose rows alternate: what is measured and its scale are sorted alike."""
    from entropy_attn.recorders.base import Parts
    from entropy_attn.routing.calls import DenoiserCall, LayerCall, LayerSelection
    from entropy_attn.routing.router import Router

    query = torch.randn(4, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy, recorder = OfBranch(Constant((0.5, 3.0)), "uncond"), EntropyRecorder()
    router = Router(policy, LayerSelection(), recorder, None)
    call = DenoiserCall(0, (2, 3), Parts(("cond", "uncond"), (1, 3, 0, 2)), image_tokens=6, batch=4)
    with router.denoiser_call(call):
        out = router.attention(LayerCall("a", "self"), AttentionArguments(query, query, query))
    factors = torch.tensor([[0.5, 3.0], [1.0, 1.0]] * 2, dtype=torch.float64)
    p = (query @ query.mT * 8**-0.5 * factors[:, :, None, None]).softmax(-1)
    torch.testing.assert_close(out, p @ query, rtol=1e-6, atol=1e-7)
    columns = recorder.to_columns()
    assert columns["branch"] == ["cond", "cond", "uncond", "uncond"]
    scales = torch.tensor(columns["scale"]) * 8**0.5
    torch.testing.assert_close(scales, torch.tensor([1.0, 1.0, 0.5, 3.0]), rtol=1e-6, atol=0)
    entropies = torch.special.entr(p).sum(-1).mean(-1)  # (B, H)
    wanted = torch.cat([entropies[[1, 3]].mean(0), entropies[[0, 2]].mean(0)])
    torch.testing.assert_close(torch.tensor(columns["mean"], dtype=torch.float64), wanted, rtol=1e-5, atol=1e-6)
