"""One call of ComfyUI's attention function: what is read of it, and what is passed on."""

from __future__ import annotations

import inspect

import pytest
import torch

import entropy_attn as ea
from tests.integrations.comfyui import stub
from tests.integrations.comfyui.loading import part

AttentionCall = part("call").AttentionCall


def tensors(heads=3, kv_heads=3, queries=5, keys=7, width=4, apart=False):
    torch.manual_seed(0)
    shapes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    found = [torch.randn(2, count, length, width, dtype=torch.float64) for count, length in shapes]
    return found if apart else [t.transpose(1, 2).flatten(2) for t in found]


def test_the_stub_has_the_signature_that_calls_are_read_by():
    assert inspect.signature(stub.attention) == part("call").SIGNATURE


@pytest.mark.parametrize("apart", [False, True], ids=["joined", "apart"])
@pytest.mark.parametrize("kv_heads", [3, 1], ids=["all heads", "grouped"])
@pytest.mark.parametrize("mask", [None, (5, 7), (2, 5, 7), (2, 1, 5, 7), (2, 3, 5, 7)], ids=str)
def test_a_call_means_the_same_to_this_package(apart, kv_heads, mask):
    q, k, v = tensors(kv_heads=kv_heads, apart=apart)
    bias = None if mask is None else torch.randn(mask, dtype=torch.float64)
    options = {"skip_reshape": apart, "enable_gqa": kv_heads != 3, "mask": bias, "skip_output_reshape": True}
    call = AttentionCall.of((q, k, v, 3), options)
    arguments = call.arguments()
    ours = ea.attention(
        *arguments[:3], attn_mask=arguments.attn_mask, enable_gqa=arguments.enable_gqa, impl="reference"
    )
    torch.testing.assert_close(ours.out, stub.attention(q, k, v, 3, **options))
    assert (call.seqlen_q, call.seqlen_k, call.head_dim) == (5, 7, 4)


@pytest.mark.parametrize("which", [(2,), (0, 1, 2)], ids=["value", "all"])
def test_joined_tensors_may_have_their_heads_apart_behind_the_tokens(which):
    q, k, v = given = tensors()
    apart = [t.unflatten(-1, (3, 4)) if index in which else t for index, t in enumerate(given)]
    call = AttentionCall.of((*apart, 3), {})
    torch.testing.assert_close(
        ea.attention(*call.arguments()[:3]).out, stub.attention(q, k, v, 3, skip_output_reshape=True)
    )
    assert (call.seqlen_q, call.seqlen_k, call.head_dim) == (5, 7, 4)


def test_a_boolean_mask_means_the_same():
    q, k, v = tensors(apart=True)
    keep = torch.rand(5, 7) > 0.4
    keep[:, 0] = True
    arguments = AttentionCall.of((q, k, v, 3, keep), {"skip_reshape": True}).arguments()
    ours = ea.attention(*arguments[:3], attn_mask=arguments.attn_mask)
    torch.testing.assert_close(ours.out, stub.attention(q, k, v, 3, keep, skip_reshape=True, skip_output_reshape=True))


def test_everything_but_the_query_is_passed_on_as_it_was_given():
    q, k, v = tensors()
    given = {"attn_precision": torch.float32, "transformer_options": {"a": 1}, "low_precision_attention": False}
    bound = AttentionCall.of((q, k, v, 3, None), given).with_query(2 * q).bound
    got = {}

    def attention(q, k, v, heads, mask=1, attn_precision=None, skip_reshape=1, skip_output_reshape=1, **kwargs):
        got.update(locals())

    attention(*bound.args, **bound.kwargs)
    assert torch.equal(got["q"], 2 * q) and got["k"] is k and got["v"] is v
    assert (got["heads"], got["mask"], got["attn_precision"]) == (3, None, torch.float32)
    assert (got["skip_reshape"], got["skip_output_reshape"]) == (1, 1)  # not given, so not passed on
    assert got["kwargs"] == {name: given[name] for name in ("transformer_options", "low_precision_attention")}


@pytest.mark.parametrize("scale", [None, 0.0, 0.3])
def test_the_scale_of_a_call_is_its_own(scale):
    q, k, v = tensors()
    options = {} if scale is None else {"scale": scale}
    assert AttentionCall.of((q, k, v, 3), options).scale == (0.5 if scale is None else scale)


def test_arguments_of_another_function_are_refused():
    with pytest.raises(TypeError, match="heads"):
        AttentionCall.of(tuple(tensors()), {})
