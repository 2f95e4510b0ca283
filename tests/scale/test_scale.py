"""Scale policies: the paper's formula, its options, and refused arguments."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from entropy_attn.scale import CallInfo, Fixed, LogN, resolve_scale

INFO = CallInfo(
    layer="mid.attn1", kind="self", seqlen_q=9216, seqlen_k=9216, num_heads=8, head_dim=40, train_tokens=4096
)


def info(**changes: object) -> CallInfo:
    return dataclasses.replace(INFO, **changes)


def test_fixed():
    assert Fixed()(INFO) == 1 / math.sqrt(40)
    assert Fixed(0.0)(INFO) == 0.0
    assert Fixed(-0.5)(INFO) == -0.5
    assert Fixed(2)(INFO) == 2.0


def test_logn_is_the_papers_formula():
    assert LogN()(INFO) == pytest.approx(math.sqrt(math.log(9216, 4096) / 40), rel=1e-14)


def test_logn_gives_the_default_scale_at_the_training_size():
    assert LogN()(info(seqlen_k=4096)) == 1 / math.sqrt(40)


@pytest.mark.parametrize(
    ("side", "ratios"),
    [  # levels of Stable Diffusion 1.5, at sides of 224, 256, 768 and 1024 pixels
        (28, (0.895, 0.873, 0.838, 0.816)),
        (32, (0.913, 0.894, 0.866, 0.816)),
        (96, (1.048, 1.057, 1.071, 1.093)),
        (128, (1.080, 1.095, 1.118, 1.155)),
    ],
)
def test_logn_known_ratios(side: int, ratios: tuple[float, ...]):
    for level, expected in enumerate(ratios):
        tokens, train_tokens = math.ceil(side / 2**level) ** 2, (64 // 2**level) ** 2
        assert LogN().ratio(info(seqlen_k=tokens, train_tokens=train_tokens)) == pytest.approx(expected, abs=6e-4)


def test_strength_is_an_exponent():
    ratio = LogN().ratio(INFO)
    assert LogN(strength=0)(INFO) == 1 / math.sqrt(40)
    assert LogN(strength=2).ratio(INFO) == pytest.approx(math.log(9216, 4096))
    assert LogN(strength=-1).ratio(INFO) == pytest.approx(1 / ratio)


def test_direction():
    larger, smaller = INFO, info(seqlen_k=1024)
    assert LogN(direction="up").ratio(larger) == LogN().ratio(larger) > 1
    assert LogN(direction="up").ratio(smaller) == 1
    assert LogN(direction="down").ratio(larger) == 1
    assert LogN(direction="down").ratio(smaller) == LogN().ratio(smaller) < 1


def test_clamp_bounds_the_ratio():
    assert LogN(clamp=(0.9, 1.01)).ratio(INFO) == 1.01
    assert LogN(clamp=(1.2, None)).ratio(INFO) == 1.2
    assert LogN(clamp=(None, 0.5))(INFO) == 0.5 / math.sqrt(40)
    assert LogN(clamp=(0.9, 1.5)).ratio(INFO) == LogN().ratio(INFO)


def test_counts_below_two_count_as_two():
    assert LogN().ratio(info(seqlen_k=1, train_tokens=16)) == pytest.approx(math.sqrt(math.log(2) / math.log(16)))
    assert LogN().ratio(info(seqlen_k=16, train_tokens=1)) == pytest.approx(math.sqrt(math.log(16) / math.log(2)))
    assert LogN().ratio(info(seqlen_k=1, train_tokens=1)) == 1


def test_explicit_train_tokens_win():
    assert LogN(train_tokens=9216)(INFO) == 1 / math.sqrt(40)
    assert LogN(train_tokens=100).ratio(info(kind="cross", train_tokens=None, seqlen_k=100)) == 1


def test_text_tokens_of_joint_attention():
    joint = info(kind="joint", seqlen_k=4096 + 512, text_tokens=512)
    assert LogN().ratio(joint) == 1
    assert LogN(count_text_tokens=True).ratio(joint) == 1
    larger = info(kind="joint", seqlen_k=9216 + 512, text_tokens=512)
    assert LogN().ratio(larger) == pytest.approx(math.sqrt(math.log(9216, 4096)))
    assert LogN(count_text_tokens=True).ratio(larger) == pytest.approx(math.sqrt(math.log(9728, 4608)))


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_unknown_train_tokens_raise_with_layer_and_remedy(kind: str):
    with pytest.raises(ValueError, match=r"mid\.attn1.*LogN\(train_tokens=\.\.\.\)"):
        LogN()(info(train_tokens=None, kind=kind))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train_tokens": "yes"}, TypeError, "train_tokens: expected .*got 'yes'"),
        ({"train_tokens": 64.0}, TypeError, "train_tokens: expected .*got 64.0"),
        ({"train_tokens": 0}, ValueError, "train_tokens: expected .*got 0"),
        ({"strength": "strong"}, TypeError, "strength: expected .*got 'strong'"),
        ({"strength": math.inf}, ValueError, "strength: expected .*got inf"),
        ({"direction": "sideways"}, ValueError, "direction: expected .*got 'sideways'"),
        ({"clamp": 2.0}, TypeError, "clamp: expected .*got 2.0"),
        ({"clamp": (1, 2, 3)}, TypeError, "clamp: expected"),
        ({"clamp": (2.0, 1.0)}, ValueError, r"0 <= low <= high.*got \(2\.0, 1\.0\)"),
        ({"clamp": (math.nan, 1.0)}, ValueError, "finite"),
        ({"count_text_tokens": 1}, TypeError, "count_text_tokens: expected .*got 1"),
    ],
)
def test_logn_refuses(options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        LogN(**options)


@pytest.mark.parametrize(("value", "error"), [("1", TypeError), (True, TypeError), (math.nan, ValueError)])
def test_fixed_refuses(value: object, error: type[Exception]):
    with pytest.raises(error, match="value: expected"):
        Fixed(value)


def test_policies_compare_by_value():
    assert LogN(clamp=[0.9, None]) == LogN(clamp=(0.9, None))
    assert hash(LogN(clamp=[0.9, None])) == hash(LogN(clamp=(0.9, None)))
    assert eval(repr(LogN(strength=2.0))) == LogN(strength=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Fixed().value = 1.0


def test_resolve_accepts_what_the_protocol_allows():
    heads = torch.linspace(0.1, 0.2, 8)
    assert resolve_scale(None, INFO) is None
    assert resolve_scale(lambda info: None, INFO) is None
    assert resolve_scale(lambda info: 0, INFO) == 0.0
    assert resolve_scale(lambda info: np.float32(0.5), INFO) == 0.5
    assert resolve_scale(lambda info: heads, INFO) is heads
    assert resolve_scale(lambda info: torch.tensor(0.5), INFO).ndim == 0


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ("0.1", TypeError, "layer 'mid.attn1': expected .*got '0.1'"),
        (True, TypeError, "got True"),
        (math.nan, ValueError, "finite"),
        (torch.ones(7), ValueError, r"\(8,\), got .*shape \(7,\)"),
        (torch.ones(8, dtype=torch.int64), TypeError, "floating-point"),
    ],
)
def test_resolve_refuses(answer: object, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        resolve_scale(lambda info: answer, INFO)
