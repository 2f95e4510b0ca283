"""Arguments that the public calls refuse: each error names the argument, the expected values and the given one."""

from __future__ import annotations

import pickle
import re

import pytest
import torch

import entropy_attn as ea

Q = torch.zeros(2, 4, 5, 8)
K = torch.zeros(2, 4, 7, 8)


def refused(error, message, q=Q, k=K, v=K, **options):
    for call in (ea.attention, ea.unsupported_reasons):
        with pytest.raises(error, match=re.escape(message)):
            call(q, k, v, **options)


@pytest.mark.parametrize(
    "tensors, error, message",
    [
        ((None, K, K), TypeError, "query: expected a tensor, got NoneType"),
        ((Q.int(), K, K), TypeError, "query: expected float16, bfloat16, float32 or float64, got torch.int32"),
        ((Q, K.half(), K), TypeError, "key: expected the query's dtype torch.float32, got torch.float16"),
        ((Q, K, K.to("meta")), ValueError, "value: expected the query's device cpu, got meta"),
        ((Q[0], K, K), ValueError, "query: expected shape (batch, heads, tokens, head_dim), got (4, 5, 8)"),
        ((Q, K[:1], K[:1]), ValueError, "query, key, value: expected one batch size, got 2, 1 and 1"),
        ((Q, K, K[:, :2]), ValueError, "value: expected the query's 4 heads, got 2"),
        ((Q, K[:, :2], K[:, :2]), ValueError, "key: expected the query's 4 heads, got 2"),
        ((Q, K, K[:, :, :3]), ValueError, "value: expected the key's 7 tokens, got 3"),
        ((Q, K[..., :4], K), ValueError, "key: expected the query's head_dim 8, got 4"),
        ((Q[..., :0], K[..., :0], K), ValueError, "query: expected a head_dim of at least 1, got 0"),
    ],
)
def test_tensors(tensors, error, message):
    refused(error, message, *tensors)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"attn_mask": [[True]]}, TypeError, "attn_mask: expected None or a tensor, got list"),
        ({"attn_mask": torch.ones(5, 7, dtype=torch.int64)}, TypeError, "got torch.int64"),
        ({"attn_mask": torch.ones(7, 5, dtype=torch.bool)}, ValueError, "= (2, 4, 5, 7), got (7, 5)"),
        ({"attn_mask": torch.ones(1, 2, 4, 5, 7)}, ValueError, "got (1, 2, 4, 5, 7)"),
        (
            {"attn_mask": torch.ones(5, 7, device="meta")},
            ValueError,
            "attn_mask: expected the query's device cpu, got meta",
        ),
        (
            {"attn_mask": torch.ones(5, 7), "is_causal": True},
            ValueError,
            "attn_mask: expected None with is_causal=True",
        ),
        ({"is_causal": 1}, TypeError, "is_causal: expected a bool, got int"),
        ({"enable_gqa": None}, TypeError, "enable_gqa: expected a bool, got NoneType"),
        ({"scale": "0.1"}, TypeError, "scale: expected None, a number or a tensor, got str"),
        ({"scale": True}, TypeError, "got bool"),
        ({"scale": float("nan")}, ValueError, "scale: expected a finite number, got nan"),
        ({"scale": torch.ones(4, dtype=torch.int32)}, TypeError, "floating-point tensor, got torch.int32"),
        (
            {"scale": torch.ones(3)},
            ValueError,
            "scale: expected a number, a 0-d tensor, a tensor of shape (4,) with one factor per query head or one that "
            "broadcasts to (batch, heads) = (2, 4), got shape (3,)",
        ),
        ({"scale": torch.ones(2)}, ValueError, "got shape (2,)"),  # not one for each sample
        ({"scale": torch.ones(4, 2)}, ValueError, "got shape (4, 2)"),
        ({"scale": torch.ones(2, 3)}, ValueError, "got shape (2, 3)"),
        ({"scale": torch.ones(1, 4, 1, 1)}, ValueError, "got shape (1, 4, 1, 1)"),
        ({"scale": torch.ones(4, device="meta")}, ValueError, "scale: expected the query's device cpu, got meta"),
        ({"map_keys": 3}, TypeError, "map_keys: expected None, (start, stop) or a slice, got 3"),
        ({"map_keys": (0, 3, 1)}, TypeError, "got (0, 3, 1)"),
        ({"map_keys": (0, 2.0)}, TypeError, "map_keys: expected integer bounds, got (0, 2.0)"),
        ({"map_keys": (False, 3)}, TypeError, "got (False, 3)"),
        ({"map_keys": slice(0, 6, 2)}, ValueError, "map_keys: expected a slice with step 1, got slice(0, 6, 2)"),
        ({"map_keys": (3, 3)}, ValueError, "map_keys: expected 0 <= start < stop <= 7, got (3, 3)"),
        ({"map_keys": (0, 8)}, ValueError, "expected 0 <= start < stop <= 7, got (0, 8)"),
        ({"map_keys": slice(-8, None)}, ValueError, "got slice(-8, None, None)"),
        ({"map_keys": (5, -3)}, ValueError, "got (5, -3)"),
        ({"impl": "cuda"}, ValueError, "impl: expected 'auto', 'triton', 'sdpa' or 'reference', got 'cuda'"),
    ],
    ids=str,
)
def test_options(options, error, message):
    refused(error, message, **options)


def test_grouped_heads_must_divide():
    refused(
        ValueError,
        "key: expected a number of heads that divides the query's 4, got 3",
        Q,
        K[:, :3],
        K[:, :3],
        enable_gqa=True,
    )


def test_attention_has_no_dropout():
    with pytest.raises(TypeError, match="dropout_p"):
        ea.attention(Q, K, K, dropout_p=0.1, return_entropy=True)


def test_the_drop_in_refuses_a_per_head_scale_without_heads():
    with pytest.raises(ValueError, match=re.escape("scale: expected a number or a 0-d tensor, got shape (1,)")):
        ea.scaled_dot_product_attention(Q[0, 0], K[0, 0], K[0, 0], scale=torch.ones(1))


@pytest.mark.parametrize("shape", [(4, 5, 16), (3, 2, 4, 5, 16)], ids=str)
def test_the_drop_in_refuses_a_scale_for_each_sample_unless_the_query_has_four_dimensions(shape):
    q = torch.zeros(shape)
    with pytest.raises(ValueError, match=re.escape("(4,) with one factor per query head, got shape (2, 4)")):
        ea.scaled_dot_product_attention(q, q, q, scale=torch.ones(2, 4))


def test_an_explicit_impl_never_falls_back_and_lists_every_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q = torch.zeros(1, 2, 5, 20, dtype=torch.float64, requires_grad=True)
    reasons = ea.unsupported_reasons(q, q, q)
    assert len(reasons) >= 3
    for part in ("float64", "head_dim 20"):
        assert any(part in reason for reason in reasons)
    with pytest.raises(ea.Unsupported, match="impl='triton'") as caught:
        ea.attention(q, q, q, impl="triton")
    assert caught.value.reasons == reasons
    assert all(reason in str(caught.value) for reason in reasons)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.impl, copy.reasons, str(copy)) == ("triton", reasons, str(caught.value))


def test_a_range_of_no_keys_is_refused():
    refused(
        ValueError,
        "expected 0 <= start < stop <= 0, got slice(None, None, None)",
        Q,
        K[:, :, :0],
        K[:, :, :0],
        map_keys=slice(None),
    )


@pytest.mark.parametrize("impl", ["auto", "sdpa", "reference"])
def test_always_supported_calls_have_no_reasons(impl):
    assert ea.unsupported_reasons(Q, K, K, return_entropy=True, map_keys=(0, 3), impl=impl) == []
