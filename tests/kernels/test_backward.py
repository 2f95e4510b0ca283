"""The backward kernels against float64 autograd, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from entropy_attn.kernels.backward import launch as launch_backward
from entropy_attn.kernels.backward.configs import BackwardConfig, TileConfig
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.support import backward_unsupported, call_target
from entropy_attn.kernels.forward import launch
from tests.kernels.calls import DEVICE, DTYPES, random_mask
from tests.kernels.test_addresses import spread
from tests.support.oracle import make_qkv as make_qkv_on
from tests.support.oracle_gradients import GRADS, assert_gradients_match, gradients, random_gradients, reference_outputs

make_qkv = functools.partial(make_qkv_on, device=DEVICE)
SMALL = BackwardConfig(TileConfig(32, 16, 4, 1), TileConfig(16, 32, 4, 1))


def backward(query: Tensor, key: Tensor, value: Tensor, grads: dict[str, Any], **options: Any) -> tuple:
    """Forward, then backward; `config` and `needs` are those of the backward pass."""
    given = {name: options.pop(name) for name in ("attn_mask", "is_causal", "scale") if name in options}
    grads = dict(grads)
    call = AttentionCall(
        query, key, value, **given, return_lse=True, return_entropy=True, map_keys=grads.pop("map_keys", None)
    )
    return launch_backward.attention_backward(call, *launch.attention_forward(call), **grads, **options)


def check(
    query: Tensor, key: Tensor, value: Tensor, config: BackwardConfig | None = None, *,
    names: tuple[str, ...] = GRADS, map_keys: tuple[int, int] | None = None, **options: Any,
) -> tuple:  # fmt: skip
    """All gradients, computed from random gradients of the named outputs, against float64."""
    seqlen_k = key.shape[2]
    has_mask, has_map = options.get("attn_mask") is not None, "grad_map" in names
    widths = query.shape[3], value.shape[3]
    refused = backward_unsupported(call_target(query), *widths, query.dtype, has_mask=has_mask, has_map=has_map)
    if refused:  # on a GPU; Triton's interpreter has no limit of registers
        pytest.skip(refused[0])
    grads = random_gradients(query, key, value, map_keys or (seqlen_k // 3, (2 * seqlen_k + 3) // 3), names)
    needs = (True, True, True, isinstance(options.get("scale"), Tensor))
    actual = backward(query, key, value, grads, needs=needs, config=config, **options)
    assert [None if t is None else t.dtype for t in actual[:3]] == [query.dtype] * 3
    assert_gradients_match(actual, query, key, value, grads, **options)
    return actual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 40, 64, 72, 80, 96, 112, 128, 160, 224, 256])
def test_head_dims(head_dim, dtype):
    check(*make_qkv(1, 1, 35, 70, head_dim, dtype=dtype))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("seqlen_q, seqlen_k", [(1, 1), (1, 90), (90, 1), (32, 32), (31, 33), (70, 40), (40, 70)])
def test_ragged_lengths(seqlen_q, seqlen_k, is_causal):
    check(*make_qkv(1, 1, seqlen_q, seqlen_k, 16), SMALL, is_causal=is_causal)


@pytest.mark.parametrize("map_keys", [(0, 1), (15, 17), (16, 32), (0, 77), (70, 77)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_ranges_of_the_map(map_keys, is_causal):
    check(*make_qkv(1, 1, 50, 77, 16, dtype=torch.float16), SMALL, map_keys=map_keys, is_causal=is_causal)


@pytest.mark.parametrize("names", [n for r in (1, 2, 3) for n in itertools.combinations(GRADS, r)], ids="-".join)
def test_any_combination_of_gradients(names):
    _, _, dv = check(*make_qkv(1, 2, 35, 50, 16, dtype=torch.float16), names=names)[:3]
    assert dv.any() == ("grad_out" in names)


def test_without_gradients_all_are_zero():
    q, k, v = make_qkv(1, 2, 5, 7, 16)
    results = backward(q, k, v, {}, scale=torch.tensor(0.2, device=DEVICE), needs=(True,) * 4)
    assert [t.shape for t in results] == [q.shape, k.shape, v.shape, ()] and not any(t.any() for t in results)
    for lengths in ((0, 7), (5, 0)):
        q, k, v = make_qkv(1, 2, *lengths, 16)
        grads = random_gradients(q, k, v, (0, 0), GRADS[:3])
        assert not any(t.any() for t in backward(q, k, v, grads)[:3])


@pytest.mark.parametrize("needed", [{0}, {1}, {2}, {3}, {0, 2}, {1, 3}, {0, 1, 2, 3}], ids=str)
def test_only_needed_kernels_are_launched(needed, monkeypatch):
    needs = tuple(i in needed for i in range(4))
    launched = []
    run = launch_backward.Launch.run
    monkeypatch.setattr(
        launch_backward.Launch,
        "run",
        lambda self, *given: (launched.append(self.kernel.__name__), run(self, *given))[1],
    )
    q, k, v = make_qkv(1, 2, 20, 30, 16)
    grads = random_gradients(q, k, v, (0, 9))
    scale = torch.tensor([0.3, -0.2], device=DEVICE)
    results = backward(q, k, v, grads, scale=scale, needs=needs)
    assert tuple(t is not None for t in results) == needs
    assert_gradients_match(results, q, k, v, grads, scale=scale)
    parts = ["query"] * (needs[0] or needs[3]) + ["key"] * (needs[1] or needs[2])
    assert launched == [f"attention_backward_{part}" for part in ["rows", *parts]]


MASKS = [(2, 2, 40, 53), (2, 1, 40, 53), (1, 2, 1, 53), (1, 1, 40, 1), (40, 53)]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *(("bool", shape) for shape in MASKS),
        *((kind, shape) for kind in ("added", "excluding") for shape in MASKS[1:3]),
    ],
)
def test_masks_broadcast_by_stride(shape, kind, dtype=torch.float16):
    dq = check(*make_qkv(2, 2, 40, 53, 16, dtype=dtype), attn_mask=random_mask(kind, shape, dtype))[0]
    if shape[-2] > 1 and kind != "added":
        assert dq[:, :, 3].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["bool", "added", "excluding"])
def test_masks_in_every_dtype(kind, dtype):
    test_masks_broadcast_by_stride((1, 2, 40, 53), kind, dtype)


def test_a_large_gradient_does_not_interfere_with_excluded_keys():
    q, k, v = make_qkv(1, 1, 20, 30, 16)
    grads = random_gradients(q, k, v, (0, 1), ("grad_entropy",))
    grads["grad_entropy"] *= 1e12
    keep = torch.ones(20, 30, dtype=torch.bool, device=DEVICE).tril(5)
    assert_gradients_match(backward(q, k, v, grads, attn_mask=keep), q, k, v, grads, attn_mask=keep)


@pytest.mark.parametrize("low", [-1e4, -1e9, -1e20, torch.finfo(torch.float32).min])
def test_rows_whose_mask_is_low_everywhere(low):
    """A user may exclude a row without infinities; its keys get equal attention, or as far as logits still differ."""
    q, k, v = make_qkv(1, 1, 40, 53, 16)
    mask = torch.zeros(40, 53, device=DEVICE)
    mask[:, 7:20] = low
    mask[5:8] = low
    check(q, k, v, attn_mask=mask)
    # With equal logits such a row is also uniform in float64, so a tight tolerance can replace the budget, which allows
    # for the rounding of an lse as large as the mask.
    q = q * 0
    grads = random_gradients(q, k, v, (5, 30))
    truth = gradients(reference_outputs, torch.float64, q, k, v, grads, None, attn_mask=mask)
    for actual, expected in zip(backward(q, k, v, grads, attn_mask=mask)[:3], truth, strict=True):
        assert (actual - expected).abs().max() <= (1e-5 if low < -1e5 else 5e-3) * expected.abs().max()


SCALES = [0.0, -0.3, 2.5, torch.tensor(0.2), torch.tensor(0.0), torch.tensor([0.1, -0.5, 0.0, 1.0])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale, heads_kv", [*((scale, 2) for scale in SCALES), (None, 1), (SCALES[-1], 4)], ids=str)
def test_scales_and_grouped_heads(scale, heads_kv, dtype):
    scale = scale.to(DEVICE) if isinstance(scale, Tensor) else scale
    actual = check(*make_qkv(1, 4, 35, 50, 16, heads_kv=heads_kv, dtype=dtype), scale=scale)
    if isinstance(scale, Tensor):
        assert actual[3].shape == scale.shape and actual[3].dtype == scale.dtype and actual[3].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 2), (2, 1), (1, 2)], ids=str)
def test_scales_of_samples(shape, dtype):
    scale = torch.linspace(0.0, -0.6, shape[0] * shape[1]).view(shape).mT.contiguous().mT.to(DEVICE)
    q, k, v = make_qkv(2, 2, 20, 30, 16, heads_kv=1, dtype=dtype)
    mask = random_mask("added", (20, 30), dtype) if dtype == DTYPES[0] else None
    assert check(q, k, v, scale=scale, attn_mask=mask)[3].shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", [30.0, 1e4])
def test_logits_up_to_one_hot(gain, dtype):
    # scale 1, so that torch's product of queries and keys stays within the range of float16
    check(*make_qkv(1, 2, 40, 53, 64, gain=gain / 8, dtype=dtype), scale=1.0)


@pytest.mark.parametrize("apart", ["together", "separate", "by chunk"])
@pytest.mark.parametrize("max_chunk", [32, 256])
@pytest.mark.parametrize("head_dim, head_dim_v", [(40, 96), (72, 16)])
def test_chunks_and_tiles(head_dim, head_dim_v, max_chunk, apart):
    chunks = (max_chunk, apart == "by chunk")
    tiles = (TileConfig(16, 32, 4, 1, *chunks), TileConfig(32, 16, 4, 1, *chunks))
    config = BackwardConfig(*tiles, separate=apart == "separate")
    check(*make_qkv(1, 1, 20, 40, head_dim, head_dim_v=head_dim_v), config)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("head_dim, head_dim_v", [(40, 96), (64, 64)])
def test_descriptors(head_dim, head_dim_v, is_causal):
    tiles = (TileConfig(32, 16, 4, 1, descriptors=True), TileConfig(16, 32, 4, 1, descriptors=True))
    q, k, v = make_qkv(1, 2, 50, 37, head_dim, head_dim_v=head_dim_v, heads_kv=1, dtype=torch.float16)
    check(q, k, v, BackwardConfig(*tiles), is_causal=is_causal)
    if not is_causal:
        check(q, k, v, BackwardConfig(*tiles), names=GRADS[1:])  # without the gradient of out
        with pytest.raises(ValueError, match=r"descriptors: expected a unit last stride.* got k strides"):
            check(q, k.mT.contiguous().mT, v, BackwardConfig(*tiles))


def test_any_strides():
    packed = torch.randn(2, 20, 3, 2, 24, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    q, k, v = (t.transpose(1, 2) for t in packed.unbind(2))
    dq, dk, dv, _ = check(q, k, v)
    assert all(t.transpose(1, 2).is_contiguous() for t in (dq, dk, dv))  # like the inputs: undoing a transpose is free
    check(*(t.mT.contiguous().mT for t in (q, k, v)))
    check(q[:, :, ::2], k.flip(2)[:, :, ::3], v.flip(2)[:, :, ::3])
    check(q, k[:, :1].expand(-1, 2, -1, -1), v)


def test_any_strides_of_the_gradients():
    q, k, v = make_qkv(2, 2, 20, 30, 24)
    grads = random_gradients(q, k, v, (5, 30))
    for change in (
        lambda t: t.mT.contiguous().mT,
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: t.flip(1)[..., :1].expand_as(t),
        lambda t: t[:1, :1, :1].expand_as(t),
        lambda t: t.sum().expand_as(t),
    ):
        changed = {n: change(t) if isinstance(t, Tensor) else t for n, t in grads.items()}
        assert_gradients_match(backward(q, k, v, changed), q, k, v, changed)


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU, tests/gpu tests this")
@pytest.mark.parametrize("strides", [(2**31 + 8, 16 * 40, 16, 1), (3, 1, 7, 2**28 + 1)], ids=["batch", "column"])
def test_large_strides(strides):
    calls = (spread(t, strides) for t in make_qkv(2, 2, 40, 40, 16, dtype=torch.float16))
    check(*calls)


def test_the_gradient_of_the_scores_fits_into_float16():
    """With a large loss scale or a mean over many rows, the gradient of the scores fits into float16 only if scaled.

    Queries and keys keep the results within the range of float16. The error of torch in float16 is no reference here.
    """
    for factor, size_q, size_k, seqlen_k in ((2.0**20, 0.1, 0.01, 20), (1e-6, 0.1, 30.0, 200)):
        q, k, v = make_qkv(1, 2, 40, seqlen_k, 32, dtype=torch.float16)
        q, k = q * size_q, k * size_k
        grads = random_gradients(q, k, v, (0, 15), GRADS[1:])
        grads = {n: t * factor if isinstance(t, Tensor) else t for n, t in grads.items()}
        dq, dk, _, _ = backward(q, k, v, grads)
        truth = gradients(reference_outputs, torch.float64, q, k, v, grads, None)
        for name, actual, expected in (("dq", dq, truth[0]), ("dk", dk, truth[1])):
            largest = expected.abs().max().item()
            assert actual.isfinite().all() and largest < 65504
            assert (actual - expected).abs().max().item() <= 2e-3 * largest + 2**-25, (
                f"{name} of gradients times {factor}"
            )


def test_a_large_gradient_of_one_head_leaves_the_others_exact():
    q, k, v = make_qkv(1, 2, 40, 100, 32, dtype=torch.float16)
    grads = random_gradients(q, k, v, (0, 1), ("grad_entropy",))
    grads["grad_entropy"][:, 0] *= 1e-4
    grads["grad_entropy"][:, 1] *= 1e5
    k[:, 1] *= 1e-3
    dq = backward(q, k * 4, v, grads)[0][:, 0]
    truth = gradients(reference_outputs, torch.float64, q, k * 4, v, grads, None)[0][:, 0]
    assert (dq - truth).abs().max() <= 2e-3 * truth.abs().max() + 2**-25
