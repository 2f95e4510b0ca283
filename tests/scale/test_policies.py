"""Policies against numbers computed by hand, and properties that all of them have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from entropy_attn.scale import (
    POLICIES,
    CallInfo,
    Constant,
    DyPE,
    Fixed,
    Layers,
    LogN,
    LogNoRoot,
    Power,
    Product,
    Steps,
    TokenRatio,
    YaRN,
)

USUAL = 1 / math.sqrt(64)
INFO = CallInfo(
    layer="mid.attn1", kind="self", seqlen_q=4096, seqlen_k=4096, num_heads=8, head_dim=64, train_tokens=1024
)
# Policies that depend on N and T only, with values for options without a default.
RATIOS: dict[str, Callable[..., TokenRatio]] = {
    "logn": LogN,
    "lognoroot": LogNoRoot,
    "power": lambda **options: Power(0.25, **options),
    "yarn": YaRN,
    "dype": lambda **options: DyPE(exponent=0.0, **options),
}
every_ratio = pytest.mark.parametrize("make", RATIOS.values(), ids=RATIOS)
counts = st.integers(2, 1 << 20)


def info(**changes: object) -> CallInfo:
    return dataclasses.replace(INFO, **changes)


def call(tokens: int, train_tokens: int) -> CallInfo:
    return info(seqlen_q=tokens, seqlen_k=tokens, train_tokens=train_tokens)


def test_every_ratio_policy_is_tested_here():
    assert set(RATIOS) == {name for name, policy in POLICIES.items() if issubclass(policy, TokenRatio)}


# -- formulas: 1024 = 2**10 tokens at training, 4096 = 2**12 now, twice as many per side -------------------------------


def test_log_n_by_hand():
    assert LogN().ratio(INFO) == pytest.approx(math.sqrt(12 / 10), rel=1e-14)


def test_log_n_without_root_by_hand():
    assert LogNoRoot().ratio(INFO) == pytest.approx(12 / 10, rel=1e-14)
    assert LogNoRoot()(INFO) == pytest.approx(12 / 80, rel=1e-14)
    assert LogNoRoot().ratio(INFO) == pytest.approx(LogN(strength=2).ratio(INFO), rel=1e-14)


@pytest.mark.parametrize(("p", "ratio"), [(0.25, math.sqrt(2)), (0.5, 2.0), (1, 4.0), (0, 1.0), (-0.5, 0.5)])
def test_power_by_hand(p: float, ratio: float):
    assert Power(p).ratio(INFO) == pytest.approx(ratio, rel=1e-14)
    assert Power(p)(INFO) == pytest.approx(ratio / 8, rel=1e-14)


def test_power_may_be_as_steep_as_log_n():
    slightly_larger = call(1024 + 8, 1024)
    assert Power(1 / (2 * math.log(1024))).ratio(slightly_larger) == pytest.approx(
        LogN().ratio(slightly_larger), abs=1e-5
    )


def test_yarn_by_hand():
    assert YaRN().ratio(INFO) == pytest.approx((0.1 * math.log(2) + 1) ** 2, rel=1e-14)
    assert YaRN().ratio(INFO) == pytest.approx(1.1434, abs=5e-5)
    # not square: an image 4 times as wide has a ratio of 2, like one with 2 times each side
    assert YaRN().ratio(call(32 * 128, 32 * 32)) == YaRN().ratio(INFO)


def test_yarn_only_sharpens_larger_images_by_default():
    smaller = call(256, 1024)
    assert YaRN()(smaller) == USUAL
    assert YaRN(direction="both").ratio(smaller) == pytest.approx((1 - 0.1 * math.log(2)) ** 2, rel=1e-14)


def test_text_is_not_counted_by_default():
    joint = info(kind="joint", seqlen_q=4096 + 512, seqlen_k=4096 + 512, text_tokens=512)
    assert LogNoRoot().ratio(joint) == pytest.approx(1.2)
    assert Power(0.5).ratio(joint) == pytest.approx(2.0)
    assert YaRN().ratio(joint) == pytest.approx((0.1 * math.log(2) + 1) ** 2)
    assert Power(0.5, count_text_tokens=True).ratio(joint) == pytest.approx(math.sqrt(4608 / 1536))
    given = Power(0.5, train_tokens=4608, count_text_tokens=True)  # a given T includes the text
    assert given.ratio(joint) == pytest.approx(1.0)
    assert not any(field.name == "count_text_tokens" for field in dataclasses.fields(YaRN))


def test_constant():
    assert Constant(1.0)(INFO) == USUAL
    assert Constant(1.2)(INFO) == pytest.approx(0.15)
    assert Constant(0, allow_nonpositive=True)(INFO) == 0.0
    assert Constant((1, -1, 1, 1, 1, 1, 1, 1), True)(INFO).tolist()[:2] == [USUAL, -USUAL]
    assert Constant(1.2)(call(64, 1024)) == Constant(1.2)(INFO)
    by_head = Constant([1, 2, 3, 4, 5, 6, 7, 8])
    assert by_head(INFO).tolist() == [head / 8 for head in range(1, 9)]
    assert hash(by_head) == hash(Constant((1, 2, 3, 4, 5, 6, 7, 8)))
    with pytest.raises(ValueError, match=r"expected 8 numbers, one per head of layer 'mid.attn1', got 2"):
        Constant((1.0, 2.0))(INFO)


@pytest.mark.parametrize("factor", [0, -1.5, (1.0, -0.5)])
def test_a_nonpositive_factor_is_accepted_on_request_only(factor):
    with pytest.raises(ValueError, match=r"factor: expected a number > 0, got -?[\d.]+; allow_nonpositive=True"):
        Constant(factor)


@pytest.mark.parametrize(("clamp", "end"), [((-0.5, None), "low"), ((None, 0), "high"), ((None, -1.0), "high")])
def test_a_nonpositive_clamp_is_refused(clamp, end):
    with pytest.raises(ValueError, match=f"clamp: expected .*{end}.*got"):
        LogN(clamp=clamp)


# -- properties of every policy that depends on N and T only -----------------------------------------------------------


@every_ratio
@given(tokens=counts)
def test_at_the_training_size_every_policy_gives_the_default_scale(make, tokens: int):
    for options in ({}, {"strength": 3.0}, {"direction": "up"}, {"direction": "down"}, {"train_tokens": tokens}):
        assert make(**options)(call(tokens, tokens)) == USUAL


@every_ratio
@given(first=counts, second=counts, train_tokens=counts)
def test_the_scale_rises_with_the_tokens(make, first: int, second: int, train_tokens: int):
    fewer, more = sorted((first, second))
    for policy in (make(direction="both"), make(direction="up"), make(direction="down"), make(strength=0.5)):
        assert policy(call(fewer, train_tokens)) <= policy(call(more, train_tokens))


@every_ratio
@given(tokens=counts, train_tokens=counts)
def test_direction_restricts_the_policy_to_larger_or_smaller_images(make, tokens: int, train_tokens: int):
    both, up, down = (
        make(direction=direction).ratio(call(tokens, train_tokens)) for direction in ("both", "up", "down")
    )
    assert up == max(both, 1.0) and down == min(both, 1.0)


@every_ratio
@given(tokens=counts, train_tokens=counts, low=st.floats(0.5, 1.0), high=st.floats(1.0, 2.0))
def test_clamp_is_applied_last(make, tokens: int, train_tokens: int, low: float, high: float):
    free = make(strength=2.0).ratio(call(tokens, train_tokens))
    assert make(strength=2.0, clamp=(low, high)).ratio(call(tokens, train_tokens)) == min(max(free, low), high)


@every_ratio
@given(tokens=counts, train_tokens=counts, strength=st.floats(-3, 3))
def test_strength_is_an_exponent(make, tokens: int, train_tokens: int, strength: float):
    at = call(tokens, train_tokens)
    assert make(direction="both", strength=strength).ratio(at) == pytest.approx(
        make(direction="both").ratio(at) ** strength, rel=1e-12
    )


@every_ratio
def test_refusals_name_the_policy(make):
    name = type(make()).__name__
    with pytest.raises(ValueError, match=rf"{name}\(train_tokens='auto'\).*'mid.attn1'.*{name}\(train_tokens=\.\.\.\)"):
        make()(info(train_tokens=None))
    for options, error in (({"strength": "much"}, TypeError), ({"direction": "left"}, ValueError)):
        with pytest.raises(error, match=next(iter(options))):
            make(**options)
    with pytest.raises(TypeError, match="p: expected"):
        Power("a")


@every_ratio
def test_compiled_once_for_all_sizes(make):
    """In a trace, a policy returns a 0-d tensor equal to the float, and new sizes do not compile it again."""
    for options in ({}, {"direction": "down", "strength": 2.0}, {"clamp": (0.9, 1.2)}):
        policy, counter = make(**options), CompileCounterWithBackend("eager")
        torch._dynamo.reset()

        def scaled(query: torch.Tensor, train_tokens: int, policy=policy) -> torch.Tensor:
            tokens = query.shape[0]
            return query * policy(CallInfo("layer", "self", tokens, tokens, 8, 64, train_tokens))

        compiled = torch.compile(scaled, backend=counter, fullgraph=True)
        frames = []
        for tokens, train_tokens in ((24, 20), (25, 21), (64, 33), (12, 40), (40, 40)):
            query = torch.ones(tokens, dtype=torch.float64)
            torch.testing.assert_close(compiled(query, train_tokens), scaled(query, train_tokens), rtol=1e-12, atol=0)
            frames.append(counter.frame_count)
        assert frames == [1, 2, 2, 2, 2], frames


# -- combinations of policies ------------------------------------------------------------------------------------------


def test_steps():
    policy = Steps(Constant(2.0), 2, 4)
    assert [policy(info(step=step)) for step in range(5)] == [None, None, 0.25, 0.25, None]
    policy = Steps(Constant(2.0), stop=1, otherwise=Fixed())
    assert [policy(info(step=step)) for step in range(3)] == [0.25, USUAL, USUAL]
    assert Steps(Fixed(0.5), 3)(info(step=1000)) == 0.5


def test_layers_the_first_pattern_decides():
    policy = Layers({"^mid": Constant(2.0), r"attn1$": Fixed(), "attn2": None}, otherwise=Fixed(0.5))
    assert policy(info(layer="mid.attn1")) == 0.25
    assert policy(info(layer="up.attn1")) == USUAL
    assert policy(info(layer="up.attn2")) is None
    assert policy(info(layer="up.attn3")) == 0.5
    assert Layers({"^mid": Constant(2.0)})(info(layer="up.mid")) is None
    assert Layers([("mid", Fixed())]) == Layers({"mid": Fixed()})
    assert hash(Layers({"mid": Fixed()})) == hash(Layers((("mid", Fixed()),)))


def test_product_multiplies_factors():
    assert Product(Constant(2.0), Constant(3.0))(INFO) == pytest.approx(6 / 8)
    assert Product(LogN(), Constant(1.1))(INFO) == pytest.approx(1.1 * math.sqrt(1.2) / 8)
    assert Product(LogN(), Steps(Constant(9.0), 5))(INFO) == pytest.approx(LogN()(INFO))
    assert Product(Steps(Fixed(), 5))(INFO) is None
    by_head = Product(Constant((1, 2, 3, 4, 5, 6, 7, 8)), Constant(2))(INFO)
    assert by_head.tolist() == pytest.approx([head / 4 for head in range(1, 9)])


def test_combinations_compare_by_value():
    for policy in (Steps(LogN(), 0, 5), Product(LogN(), Constant(1.1)), Layers({"mid": LogN()})):
        assert eval(repr(policy)) == policy and hash(eval(repr(policy))) == hash(policy)
        with pytest.raises(dataclasses.FrozenInstanceError):
            policy.policy = None


def test_combinations_know_whether_they_need_the_training_size():
    needs, free = LogN(), LogN(train_tokens=64)
    for make in (Steps, Product, lambda policy: Layers({"a": Fixed(), "b": policy}), lambda p: Steps(Fixed(), 1, 2, p)):
        assert make(needs).needs_train_tokens and not make(free).needs_train_tokens


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Steps(0.1), TypeError, r"policy: expected .*got 0\.1.*Fixed"),
        (lambda: Steps(Fixed(), -1), ValueError, "start: expected .*got -1"),
        (lambda: Steps(Fixed(), 3, 3), ValueError, "stop: expected None or an integer >= 4, got 3"),
        (lambda: Steps(Fixed(), 1.5), TypeError, r"start: expected .*got 1\.5"),
        (lambda: Steps(Fixed(), otherwise=2), TypeError, "otherwise: expected .*got 2"),
        (lambda: Layers({}), ValueError, "at least one pattern"),
        (lambda: Layers(LogN()), TypeError, "policies: expected"),
        (lambda: Layers({"(": Fixed()}), ValueError, r"valid regular expressions as keys, got '\('"),
        (lambda: Layers({1: Fixed()}), TypeError, "regular expressions as keys, got 1"),
        (lambda: Layers({"a": 0.1}), TypeError, r"policies\['a'\]: expected .*got 0\.1"),
        (lambda: Product(), TypeError, "at least one"),
        (lambda: Product(Fixed(), 2.0), TypeError, r"policies\[1\]: expected .*got 2\.0"),
        (lambda: Constant("1"), TypeError, "factor: expected .*got '1'"),
        (lambda: Constant(math.inf), ValueError, "factor: expected .*got inf"),
        (lambda: Constant(()), ValueError, "at least one number"),
    ],
)
def test_refusals(make: Callable[[], object], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()


def test_the_result_of_an_inner_policy_is_checked():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Product(lambda info: torch.ones(3))(INFO)
    with pytest.raises(TypeError, match="got 'a'"):
        Steps(lambda info: "a")(INFO)
