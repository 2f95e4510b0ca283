"""The compiled backward kernels, through autograd, at sizes that are too large for the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import entropy_attn as ea
from entropy_attn.kernels.common.support import backward_unsupported, call_target
from tests.support.oracle import make_qkv
from tests.support.oracle_gradients import GRADS, assert_gradients_match, random_gradients

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RESULTS = ("out", "lse", "entropy", "map")


def randn(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda")


def draw_gradients(query: Tensor, value: Tensor, map_keys: tuple[int, int]) -> dict[str, Any]:
    """Gradients of all results of a call, in the format of `random_gradients`, but drawn on the GPU."""
    rows = query.shape[:3]
    shapes = ((*rows, value.shape[3]), rows, rows, (query.shape[0], query.shape[2], map_keys[1] - map_keys[0]))
    drawn = {f"grad_{n}": torch.randn(s, device=query.device) for n, s in zip(RESULTS, shapes, strict=True)}
    return drawn | {"grad_out": drawn["grad_out"].to(query.dtype), "map_keys": map_keys}


def attend(query: Tensor, key: Tensor, value: Tensor, grads: dict[str, Any], **options: Any) -> tuple[list, list]:
    """The results that have a gradient in `grads`, and these gradients."""
    options |= {"return_lse": True, "return_entropy": True, "enable_gqa": query.shape[1] != key.shape[1]}
    result = ea.attention(query, key, value, **options, map_keys=grads.get("map_keys"), impl="triton")
    names = [name for name in RESULTS if f"grad_{name}" in grads]
    return [getattr(result, name) for name in names], [grads[f"grad_{name}"] for name in names]


def gradients(query: Tensor, key: Tensor, value: Tensor, grads: dict[str, Any], **options: Any) -> tuple[Tensor, ...]:
    """`(dq, dk, dv)`, and the gradient of a tensor scale."""
    leaves = [t.detach().requires_grad_() for t in (query, key, value)]
    if isinstance(options.get("scale"), Tensor):
        options["scale"] = options["scale"].detach().requires_grad_()
        leaves.append(options["scale"])
    outputs, grad_outputs = attend(*leaves[:3], grads, **options)
    return torch.autograd.grad(outputs, leaves, grad_outputs)


def assert_head_matches(
    actual: tuple[Tensor, ...], query: Tensor, key: Tensor, value: Tensor, grads: dict[str, Any], *,
    batch: int = 0, head: int = 0, rows: slice | list[int] = slice(None), scale: Tensor | None = None, **options: Any,
) -> None:  # fmt: skip
    """One key head and the query heads that share it, against float64: all heads of a large call would not fit.

    `rows` are the rows with a gradient; only they contribute to dK and dV.
    """
    group = query.shape[1] // key.shape[1]
    b, h, h_kv = slice(batch, batch + 1), slice(head * group, (head + 1) * group), slice(head, head + 1)

    def of_rows(t: Tensor) -> Tensor:
        return t[b, h][:, :, rows]

    part = {n: of_rows(g) for n, g in grads.items() if n in ("grad_out", "grad_lse", "grad_entropy")}
    if "grad_map" in grads:  # the mean is over fewer heads
        part["grad_map"] = grads["grad_map"][b][:, rows] * (group / query.shape[1])
        part["map_keys"] = grads["map_keys"]
    given = (of_rows(actual[0]), actual[1][b, h_kv], actual[2][b, h_kv], *(t[h] for t in actual[3:]))
    scale = None if scale is None else scale[h]
    assert_gradients_match(given, of_rows(query), key[b, h_kv], value[b, h_kv], part, scale=scale, **options)


def assert_same_bits(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        assert torch.equal(a, b), f"gradient {i}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [40, 64, 72, 80, 96, 112, 128, 160, 256])
def test_long_sequences(head_dim, dtype):
    q, k, v = (randn(2, 4, n, head_dim, dtype=dtype) for n in (1025, 2100, 2100))
    grads = random_gradients(q, k, v, (2023, 2100))
    if backward_unsupported(call_target(q), head_dim, head_dim, dtype, has_map=True):
        with pytest.raises(ea.Unsupported, match=f"head_dim {head_dim} of .* beyond"):
            gradients(q, k, v, grads)
        return
    assert_head_matches(gradients(q, k, v, grads), q, k, v, grads, batch=1, head=3)
    del grads["grad_map"], grads["map_keys"]  # maps have different tiles
    assert_head_matches(gradients(q, k, v, grads), q, k, v, grads, batch=1, head=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("option", ["causal", "boolean mask", "added mask", "keys' mask"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_long_sequences_with_a_mask(head_dim, option, dtype):
    q, k, v = (randn(1, 2, n, head_dim, dtype=dtype) for n in (1025, 1100, 1100))
    masks = {
        "boolean mask": randn(1025, 1100) > -0.2,
        "added mask": randn(1025, 1100, dtype=dtype),
        "keys' mask": randn(1, 1100) > -0.2,
    }
    options = {"attn_mask": masks[option]} if option in masks else {"is_causal": True}
    for names in (GRADS, GRADS[:1]):
        grads = random_gradients(q, k, v, (800, 1000), names)
        assert_head_matches(gradients(q, k, v, grads, **options), q, k, v, grads, head=1, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [40, 64, 80, 128])
def test_few_keys(head_dim, dtype):
    """On Hopper most by one kernel, with the queries in parts over the multiprocessors."""
    q, k, v = (randn(2, 8, n, head_dim, dtype=dtype) for n in (4100, 77, 77))
    for names in (GRADS[:3], GRADS):
        grads = random_gradients(q, k, v, (3, 70), names)
        actual = gradients(q, k, v, grads)
        assert_head_matches(actual, q, k, v, grads, batch=1, head=5)
        assert_same_bits(actual, gradients(q, k, v, grads))


@pytest.mark.parametrize("dtype", DTYPES)
def test_shared_heads_and_a_scale_for_each(dtype):
    """The models store the heads inside of the tokens."""
    q, k, v = (randn(1, n, h, 40, dtype=dtype).transpose(1, 2) for n, h in ((1025, 8), (1100, 2), (1100, 2)))
    scale = torch.linspace(-0.1, 0.3, 8, device=q.device)
    grads = random_gradients(q, k, v, (0, 77))
    actual = gradients(q, k, v, grads, scale=scale)
    for head in (0, 1):
        assert_head_matches(actual, q, k, v, grads, head=head, scale=scale)


@pytest.mark.parametrize("seqlen", [16_384, 65_536])
def test_very_long_sequences(seqlen, dtype=torch.bfloat16):
    """A few rows have gradients, so that float64 fits into memory; the gradients of the others are exactly zero."""
    q, k, v = (randn(1, 2, seqlen, 64, dtype=dtype) for _ in range(3))
    rows = [*range(70), *range(seqlen // 2, seqlen // 2 + 3), *range(seqlen - 60, seqlen)]
    others = torch.ones(seqlen, dtype=torch.bool, device=q.device)
    others[rows] = False
    grads = draw_gradients(q, v, (seqlen - 77, seqlen))
    for name, axis in (("grad_out", 2), ("grad_lse", 2), ("grad_entropy", 2), ("grad_map", 1)):
        grads[name].movedim(axis, 0)[others] = 0
    actual = gradients(q, k, v, grads)
    assert not actual[0][:, :, others].any()
    assert_head_matches(actual, q, k, v, grads, head=1, rows=rows)


def test_more_heads_than_fit_into_a_grid_axis():
    q, k, v = make_qkv(9_000, 8, 3, 5, 16, dtype=torch.float16, device="cuda")
    grads = random_gradients(q, k, v, (1, 4))
    assert_gradients_match(gradients(q, k, v, grads), q, k, v, grads)


@pytest.mark.parametrize("large", ["queries", "keys"])
def test_tensors_beyond_two_to_the_31_elements(large):
    lengths = (65_537, 77) if large == "queries" else (40, 65_537)
    q = randn(16, 33, lengths[0], 64)
    k, v = (randn(16, 33, lengths[1], 64) for _ in range(2))
    assert max(q.numel(), k.numel()) > 2**31
    grads = draw_gradients(q, v, (lengths[1] - 70, lengths[1]))
    actual = gradients(q, k, v, grads)
    for batch, head in ((0, 0), (15, 32)):
        assert_head_matches(actual, q, k, v, grads, batch=batch, head=head)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [40, 128])
def test_the_same_call_gives_the_same_bits(head_dim, dtype):
    q, k, v = (randn(2, n, 1111, head_dim, dtype=dtype) for n in (8, 4, 4))
    grads = draw_gradients(q, v, (5, 900))
    scale = torch.linspace(0.05, 0.3, 8, device=q.device)
    first = gradients(q, k, v, grads, scale=scale)
    for _ in range(5):
        assert_same_bits(first, gradients(q, k, v, grads, scale=scale))


def test_a_cuda_graph_of_forward_and_backward():
    q, k, v = (randn(1, 8, 500, 64) for _ in range(3))
    grads = draw_gradients(q, v, (0, 77))
    gradients(q, k, v, grads)  # compile: a capture cannot do it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(q, k, v, grads)
    for t in (q, k, v, *(g for g in grads.values() if torch.is_tensor(g))):
        t.copy_(torch.randn_like(t))
    for t in captured:
        t.fill_(float("nan"))
    graph.replay()
    assert_same_bits(gradients(q, k, v, grads), captured)


def test_another_stream():
    q, k, v = (randn(1, 8, 500, 64) for _ in range(3))
    grads = draw_gradients(q, v, (0, 77))
    expected = gradients(q, k, v, grads)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        beside = gradients(q, k, v, grads)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(expected, beside)


@pytest.mark.parametrize("with_map", [False, True])
@pytest.mark.parametrize("head_dim", [64, 160])
def test_memory_beyond_the_gradients_is_a_few_numbers_a_row(head_dim, with_map):
    """The scores of one head would take 512 MiB."""
    q, k, v = (randn(1, 8, 16_384, head_dim).requires_grad_() for _ in range(3))
    grads = draw_gradients(q, v, (0, 77))
    if not with_map:
        del grads["grad_map"], grads["map_keys"]
    gradients(q, k, v, grads)
    outputs, grad_outputs = attend(q, k, v, grads)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = torch.autograd.grad(outputs, (q, k, v), grad_outputs)
    extra = torch.cuda.max_memory_allocated() - before - sum(t.numel() * t.element_size() for t in results)
    assert extra <= 5 * 4 * 8 * 16_384 + 2**21
