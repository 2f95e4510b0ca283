"""Policies of time and of branches, against their formulas written out in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from entropy_attn.scale import (
    TACA,
    CallInfo,
    Constant,
    DyPE,
    Fixed,
    KeyGroups,
    Layers,
    LogN,
    OfBranch,
    Product,
    Schedule,
    Steps,
    TargetEntropy,
    YaRN,
    resolve_scale,
)
from entropy_attn.scale.call import any_policy, with_inner
from entropy_attn.scale.parsing import parse_scale

INFO = CallInfo("blocks.0.attn", "self", 4096, 4096, 2, 16, train_tokens=1024, timestep=600.0, sigma=1.5, num_steps=10)
GUIDED = replace(INFO, batch=4, branches=("uncond", "uncond", "cond", "cond"))
DEFAULT = 0.25


@pytest.mark.parametrize("timestep", [1000.0, 613.7, 250.0, 0.0])
@pytest.mark.parametrize("exponent", [0.5, 2.0])
def test_dype_falls_with_the_time(timestep, exponent):
    side, train_side, time = 64.0, 32.0, timestep / 1000.0
    m = 1.0 + (0.1 * math.log(side / train_side) + 1.0 - 1.0) * time**exponent  # of queries and of keys
    scale = DyPE(exponent=exponent)(replace(INFO, timestep=timestep))
    assert scale == pytest.approx(m * m / math.sqrt(16), rel=1e-15)


def test_dype_without_time_is_yarn():
    unknown = replace(INFO, timestep=None)
    assert DyPE(exponent=0)(unknown) == YaRN()(unknown) == YaRN()(INFO)
    assert DyPE()(replace(INFO, timestep=1000.0)) == pytest.approx(YaRN()(INFO), rel=1e-15)
    assert DyPE()(replace(INFO, seqlen_k=256)) == DEFAULT, "only larger images"
    assert DyPE(clamp=(None, 1.01)).ratio(INFO) == 1.01
    assert DyPE().needs_timestep and not DyPE(exponent=0.0).needs_timestep
    with pytest.raises(ValueError, match=r"timestep of layer 'blocks\.0\.attn' is not known; give exponent=0"):
        DyPE()(unknown)


@pytest.mark.parametrize(
    ("of", "window", "inside", "outside"),
    [
        ("sigma", (2.0, 1.0), (2.0, 1.5), (2.1, 1.0, 0.0)),
        ("sigma", (None, 1.0), (14.6, 1.1), (1.0, 0.5)),
        ("timestep", (900, None), (900.0, 1.0, 0.0), (901.0, 1000.0)),
    ],
)
def test_a_window_of_what_falls_has_its_beginning_and_not_its_end(of, window, inside, outside):
    policy = Schedule(Fixed(0.1), window, of, otherwise=Fixed(0.2))
    assert [policy(replace(INFO, **{of: x})) for x in inside] == [0.1] * len(inside)
    assert [policy(replace(INFO, **{of: x})) for x in outside] == [0.2] * len(outside)
    assert Schedule(Fixed(0.1), window, of)(replace(INFO, **{of: outside[0]})) is None


def test_the_progress_is_that_of_steps_for_any_number_of_them():
    policy, steps = Schedule(Fixed(0.1), (0.2, 0.5), "progress"), Steps(Fixed(0.1), 2, 5)
    for step in range(10):
        assert policy(replace(INFO, step=step)) == steps(replace(INFO, step=step))
    assert [policy(replace(INFO, step=step, num_steps=20)) for step in (3, 4, 9, 10)] == [None, 0.1, 0.1, None]


def test_a_schedule_asks_for_what_it_reads():
    sigma, timestep, progress = (Schedule(LogN(), (None, None), of) for of in ("sigma", "timestep", "progress"))
    asked = "needs_sigma", "needs_timestep", "needs_num_steps"
    for number, policy in enumerate((sigma, timestep, progress)):
        assert [any_policy(Layers({"a": policy}), name) for name in asked] == [i == number for i in range(3)]
        assert policy.needs_train_tokens and not Schedule(Fixed(), (1, 0)).needs_train_tokens
        with pytest.raises(ValueError, match=rf"of='{policy.of}': it is not known at layer .*Steps"):
            policy(replace(INFO, sigma=None, timestep=None, num_steps=None))
    assert with_inner(Layers({"a": sigma})) == (Layers({"a": sigma}), sigma, LogN())
    with pytest.raises(ValueError, match=r"between: expected a pair \(high, low\).*got \(1, 2\)"):
        Schedule(Fixed(), (1, 2))
    with pytest.raises(ValueError, match=r"between: expected a pair \(start, stop\).*got \(0.5, 0.1\)"):
        Schedule(Fixed(), (0.5, 0.1), "progress")


def test_a_policy_for_a_branch_gives_each_sample_its_scale():
    policy = OfBranch(Constant((0.5, 2.0)), "uncond")
    wanted = torch.tensor([[0.125, 0.5], [0.125, 0.5], [0.25, 0.25], [0.25, 0.25]])
    assert torch.equal(resolve_scale(policy, GUIDED), wanted)
    turned = replace(GUIDED, branches=("cond", "uncond", "cond", "uncond"))
    assert torch.equal(resolve_scale(policy, turned), wanted[[2, 0, 2, 0]])
    both = OfBranch(Fixed(0.1), "cond", otherwise=lambda info: torch.tensor([0.2, 0.3], dtype=torch.float64))
    assert both(GUIDED).tolist() == [[0.2, 0.3], [0.2, 0.3], [0.1, 0.1], [0.1, 0.1]]
    nested = OfBranch(OfBranch(Fixed(0.1), "cond"), "uncond", otherwise=Fixed(0.3))
    torch.testing.assert_close(nested(GUIDED), torch.tensor([[0.25] * 2] * 2 + [[0.3] * 2] * 2))


def test_one_branch_alone_needs_no_tensor():
    policy = OfBranch(Fixed(0.1), "uncond")
    assert policy(replace(GUIDED, branches=("uncond",) * 4)) == 0.1
    for other in ("cond", "all"):
        assert policy(replace(GUIDED, branches=(other,) * 4)) is None
    assert OfBranch(Fixed(0.1), "cond")(replace(GUIDED, branches=("all",) * 4)) == 0.1
    assert OfBranch(lambda info: None, "cond")(GUIDED) is None
    assert GUIDED.branch is None and replace(GUIDED, branches=("cond",) * 4).branch == "cond" and INFO.branch is None


def test_scales_of_samples_combine():
    policy = Product(OfBranch(Constant(0.5), "uncond"), Constant((1.0, 3.0)))
    assert resolve_scale(policy, GUIDED).tolist() == [[0.125, 0.375]] * 2 + [[0.25, 0.75]] * 2
    assert any_policy(policy, "gives_sample_scales") and any_policy(Steps(policy, 0, 1), "needs_branches")


def test_what_a_policy_for_a_branch_refuses():
    with pytest.raises(ValueError, match=r"branch='cond': the branches of layer .* are not known"):
        OfBranch(Fixed(0.1), "cond")(INFO)
    with pytest.raises(ValueError, match="policy: expected a policy without KeyGroups"):
        OfBranch(Steps(TACA(), 0, 1), "cond")
    with pytest.raises(ValueError, match="otherwise: expected a policy without KeyGroups"):
        OfBranch(Fixed(), "cond", otherwise=lambda info: KeyGroups(key_bias=[((0, 1), 1.0)]))(GUIDED)


def test_a_scale_for_each_sample_has_the_batch_of_the_call():
    scales = torch.rand(4, 2)
    assert resolve_scale(lambda info: scales, GUIDED) is scales
    with pytest.raises(ValueError, match=r"of shape \(\), \(2,\) or \(3, 2\), got a tensor of .*\(4, 2\)"):
        resolve_scale(lambda info: scales, replace(GUIDED, batch=3))
    with pytest.raises(ValueError, match=r"no part of a graph of torch.compile.*gives_sample_scales = True"):
        resolve_scale(lambda info: scales, INFO)


@pytest.mark.parametrize("per", ["head", "layer"])
def test_the_entropy_policy_learns_from_samples_with_scales_of_their_own(per):
    """The variance at the default scale is that at a factor f divided by f squared, sample by sample."""
    info = replace(INFO, batch=2, branches=("cond", "uncond"))
    of_default = torch.tensor([[2.0, 3.0], [4.0, 7.0]], dtype=torch.float64)
    factors = torch.tensor([[1.0, 2.0], [0.5, 1.5]], dtype=torch.float64)
    variance = (of_default * factors**2)[..., None].expand(2, 2, 5)
    policy = TargetEntropy(per=per, clamp=(None, None))
    policy.learn(info, factors * DEFAULT, torch.zeros_like(variance), variance)
    spread = of_default.mean(0) if per == "head" else of_default.mean().expand(2)
    wanted = (1.0 + 2.0 * math.log(4.0) / spread).sqrt() * DEFAULT
    torch.testing.assert_close(policy(replace(info, step=1)), wanted)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("dype", DyPE()),
        ("dype:exponent=1:clamp=..1.2", DyPE(exponent=1, clamp=(None, 1.2))),
        ("logn:sigma=10..2.5", Schedule(LogN(), (10, 2.5))),
        ("logn:progress=..0.5", Schedule(LogN(), (None, 0.5), "progress")),
        ("yarn:timestep=970..", Schedule(YaRN(), (970, None), "timestep")),
        (
            "constant:factor=0.5:layers=mid:of_branch=uncond",
            OfBranch(Layers({"mid": Constant(0.5)}), "uncond"),
        ),
    ],
)
def test_on_the_command_line(text, policy):
    assert parse_scale(text) == policy


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("logn:sigma=3", r"sigma: expected FIRST\.\.LAST"),
        ("logn:sigma=1..2", r"between: expected a pair \(high, low\)"),
        ("logn:of_branch=weak", "branch: expected 'cond' or 'uncond'"),
        ("taca:of_branch=uncond", "policy: expected a policy without KeyGroups"),
    ],
)
def test_what_the_command_line_refuses(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_scale(text)
