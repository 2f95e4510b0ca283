"""Policies that give keys a factor or a bias, through whole models, against attention written out in their place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers import apply
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.recorders.response import ResponseRecorder
from entropy_attn.routing.calls import AttentionArguments
from entropy_attn.scale import TACA, KeyGroups, LogN, Product, PromptWeights, Regions, Steps, TargetEntropy
from tests.support.tiny_denoisers import CASES, TEXT
from tests.support.tiny_models import TEXT_TOKENS, Spy, make_pipe, make_text_pipe, sample
from tests.support.tiny_pipelines import PIPELINES

SIZE = (12, 8)
IMAGE = 24  # tokens of that size in the transformers here


class WrittenOut(TorchFunctionMode):
    """Attention as a softmax of `logits(s)`, in place of torch's, of calls with this many keys; counts them."""

    def __init__(self, keys: int, logits: Callable[[Tensor], Tensor]):
        super().__init__()
        self.keys, self.logits, self.probabilities = keys, logits, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, mask, *_ = AttentionArguments(*args, **kwargs)
        if key.shape[-2] != self.keys:
            return func(*args, **kwargs)
        s = query @ key.mT * query.shape[-1] ** -0.5
        if mask is not None:
            s = s.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else s + mask
        p = self.logits(s).softmax(-1)
        self.probabilities.append(p)
        return p @ value


def of_text(name: str) -> tuple[slice, slice]:
    """The image queries and the text keys of joint attention."""
    if name == "sd3":
        return slice(0, IMAGE), slice(IMAGE, IMAGE + TEXT)
    return slice(TEXT, TEXT + IMAGE), slice(0, TEXT)


def run(name: str, denoiser: Any) -> Tensor:
    return denoiser(**CASES[name].call(*SIZE), return_dict=False)[0]


@pytest.mark.parametrize("name", ["sd3", "flux"])
@torch.no_grad()
def test_taca_multiplies_one_block_of_the_logits(name):
    """As github.com/Vchitect/TACA does, and recorders see the result."""
    denoiser, (rows, keys) = CASES[name].make(), of_text(name)

    def logits(s: Tensor) -> Tensor:
        s = s.clone()
        s[..., rows, keys] *= 1.7
        return s

    with WrittenOut(IMAGE + TEXT, logits) as written:
        wanted = run(name, denoiser)
    policy, recorder = TACA(1.7, from_timestep=None), EntropyRecorder()
    with apply(denoiser, policy):
        torch.testing.assert_close(run(name, denoiser), wanted, rtol=1e-4, atol=1e-4)
    with apply(denoiser, policy, record=recorder):
        torch.testing.assert_close(run(name, denoiser), wanted, rtol=1e-4, atol=1e-4)
    table = recorder.to_dataframe()
    table = table[table["kind"] == "joint"]
    entropies = [torch.special.entr(p[:, :, rows]).sum(-1).mean((0, 2)) for p in written.probabilities]
    torch.testing.assert_close(
        torch.tensor(table["mean"].to_numpy()), torch.cat(entropies).double(), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(run(name, denoiser), wanted, atol=1e-3), "the routing is undone, and the factor matters"


@pytest.mark.parametrize("name", ["sd3", "flux"])
@torch.no_grad()
def test_taca_with_the_scale_of_another_policy(name):
    denoiser, (rows, keys) = CASES[name].make(), of_text(name)
    factor = math.sqrt(math.log(IMAGE) / math.log(16))

    def logits(s: Tensor) -> Tensor:
        s = s * factor
        s[..., rows, keys] *= 1.7
        return s

    with WrittenOut(IMAGE + TEXT, logits):
        wanted = run(name, denoiser)
    policy = Product(LogN(train_tokens=16), TACA(1.7, from_timestep=None))
    with apply(denoiser, policy, layers=r"^(?!.*attn2$)"):
        torch.testing.assert_close(run(name, denoiser), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd3", "flux", "pixart"])
def test_policies_that_ask_for_it_see_the_timestep_of_the_scheduler(name):
    case = PIPELINES[name]
    pipe, spy, blind = case.make(), Spy(), Spy()
    spy.needs_timestep = True
    with apply(pipe, spy):
        case.run(pipe)
    seen = list(dict.fromkeys(info.timestep for info in spy.calls))
    assert seen == pipe.scheduler.timesteps.tolist() and len(seen) == 2
    with apply(pipe, blind):
        case.run(pipe)
    assert {info.timestep for info in blind.calls} == {None}


def test_taca_acts_at_the_noisy_timesteps_alone():
    case = PIPELINES["flux"]
    pipe = case.make()
    plain = case.run(pipe)
    first, second = pipe.scheduler.timesteps.tolist()
    results = []
    for threshold in (first + 1, (first + second) / 2, second):
        with apply(pipe, TACA(3.0, from_timestep=threshold)):
            results.append(case.run(pipe))
    with apply(pipe, Steps(TACA(3.0, from_timestep=None), 0, 1)):
        one_step = case.run(pipe)
    torch.testing.assert_close(results[0], plain)
    torch.testing.assert_close(results[1], one_step)
    assert not torch.allclose(results[1], plain) and not torch.allclose(results[1], results[2])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_regions_bias_the_cross_attention_of_the_prompt_alone(family):
    pipe = make_pipe(family)
    left = torch.zeros(1, 2)
    left[0, 0] = 1

    def logits(s: Tensor) -> Tensor:
        side = math.isqrt(s.shape[-2])
        column = torch.arange(s.shape[-2]) % side
        bias = torch.zeros(2, 1, *s.shape[-2:])  # no bias for the first sample, which is unconditional
        bias[1, 0, column >= side // 2, 2] = -5.0
        bias[1, 0, column < side // 2, 4] = -5.0
        return s + bias

    with WrittenOut(TEXT_TOKENS, logits) as written:
        wanted = sample(pipe)
    assert written.probabilities
    policy = Regions({2: left, 4: (0.5, 0.0, 1.0, 1.0)}, outside=-5.0)
    with apply(pipe, policy, layers="cross"):
        torch.testing.assert_close(sample(pipe), wanted, rtol=1e-4, atol=1e-4)
    with apply(pipe, Regions(policy.regions, outside=-5.0, branch=None), layers="cross"):
        assert not torch.allclose(sample(pipe), wanted, atol=1e-3)
    assert not torch.allclose(sample(pipe), wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["sd3", "flux"])
@torch.no_grad()
def test_regions_in_joint_attention(name):
    denoiser, (rows, keys) = CASES[name].make(), of_text(name)

    def logits(s: Tensor) -> Tensor:
        s = s.clone()
        grid = torch.arange(IMAGE).view(6, 4)
        s[..., rows.start + grid[3:].flatten(), keys.start + 1] = -math.inf
        s[..., rows.start + grid[:3].flatten(), keys.start + 1] += 0.5
        return s

    with WrittenOut(IMAGE + TEXT, logits):
        wanted = run(name, denoiser)
    policy = Regions({1: (0.0, 0.0, 1.0, 0.5)}, inside=0.5, branch=None)
    with apply(denoiser, policy):
        torch.testing.assert_close(run(name, denoiser), wanted, rtol=1e-4, atol=1e-4)


def test_words_of_the_prompt_of_a_pipeline():
    pipe = make_text_pipe()

    def generate(**options: Any) -> Tensor:
        return sample(pipe, prompt="ab c", prompt_embeds=None, negative_prompt_embeds=None, **options)

    with apply(pipe, PromptWeights({"c": 3.0}), layers="cross"):
        by_word = generate()
    with apply(pipe, PromptWeights({3: 3.0}), layers="cross"):
        by_position = generate()
    assert torch.equal(by_word, by_position) and not torch.allclose(by_word, generate())
    with apply(pipe, PromptWeights({"d": 3.0}), layers="cross"), pytest.raises(ValueError, match="'d' is not in the"):
        generate()


def test_what_is_refused():
    pipe, denoiser = make_pipe(), CASES["flux"].make()
    groups = KeyGroups(key_bias=[((0, 2), 1.0)], branch="cond")
    with pytest.raises(ValueError, match="needs the pipeline, to know which rows are of the prompt"):
        apply(denoiser, Regions({1: (0, 0, 1, 1)}))
    with apply(pipe, lambda info: groups), pytest.raises(Unroutable, match="needs_branches = True"):
        sample(pipe)
    with apply(denoiser, TACA(from_timestep=None), rows="image"), pytest.raises(Unroutable, match="give rows='all'"):
        run("flux", denoiser)
    recorder = ResponseRecorder()
    with (
        apply(denoiser, TACA(from_timestep=None), record=recorder),
        pytest.raises(Unroutable, match="ResponseRecorder"),
    ):
        run("flux", denoiser)
    assert not pipe.unet._forward_pre_hooks and run("flux", denoiser) is not None


def test_the_entropy_is_held_from_the_second_step_on():
    """By a scale for each head, from what the step before measured, in the image's layers alone."""
    pipe, recorder = make_pipe(), EntropyRecorder()
    with apply(pipe, TargetEntropy(clamp=(None, None)), record=recorder, train_size=16) as handle:
        assert len(handle.recorders) == 2
        sample(pipe, steps=3)
    table = recorder.to_dataframe()
    first = table[table["step"] == 0].drop_duplicates(["layer", "head"])
    table = table.merge(first[["layer", "head", "scale"]], on=["layer", "head"], suffixes=("", "_first"))
    factor = table["scale"] / table["scale_first"]
    own = table["kind"] == "self"
    assert first.groupby("layer")["scale"].nunique().eq(1).all(), "the first step has the default scale"
    assert (factor[own & (table["step"] > 0)] > 1.01).all() and factor[own & (table["step"] == 1)].nunique() > 4
    assert factor[~own].eq(1.0).all()
