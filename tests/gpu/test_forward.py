"""The compiled forward kernel at sizes that are too large for the interpreter."""

from __future__ import annotations

import pytest
import torch

import entropy_attn as ea
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.support import call_target
from entropy_attn.kernels.forward import autotune, launch
from tests.gpu.candidates import plain_candidates, those_that_fit
from tests.support.oracle import assert_matches_oracle, make_qkv

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ALL = {"return_lse": True, "return_entropy": True}


def randn(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda")


def assert_rows_match(actual, q, k, v, batch: int, head: int, rows: slice, **options) -> None:
    """A few rows of one head against float64: the matrix of a large call would not fit."""
    group = q.shape[1] // k.shape[1]
    one, one_kv = slice(head, head + 1), slice(head // group, head // group + 1)
    b = slice(batch, batch + 1)
    part = tuple(None if t is None else t[b, one, rows] for t in actual)
    assert_matches_oracle(part, q[b, one, rows], k[b, one_kv], v[b, one_kv], **options)


def assert_same_bits(one: ea.AttentionOutput, other: ea.AttentionOutput) -> None:
    for name, a, b in zip(one._fields, one, other, strict=True):
        assert a is b is None or torch.equal(a, b), name


@pytest.mark.parametrize("impl", ["triton", "sdpa"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [40, 64, 72, 80, 96, 128, 160, 256])
def test_long_sequences(head_dim, dtype, impl):
    q, k, v = (randn(2, 4, n, head_dim, dtype=dtype) for n in (2049, 4100, 4100))
    actual = ea.attention(q, k, v, **ALL, impl=impl)
    for rows in (slice(0, 200), slice(1900, 2049)):
        assert_rows_match(actual, q, k, v, 1, 3, rows)


@pytest.mark.xdist_group("memory")  # one at a time: each takes gigabytes
@pytest.mark.parametrize("seqlen", [16_384, 65_536])
def test_very_long_sequences(seqlen):
    q, k, v = (randn(1, 2, seqlen, 64, dtype=torch.bfloat16) for _ in range(3))
    assert_rows_match(ea.attention(q, k, v, **ALL, impl="triton"), q, k, v, 0, 1, slice(seqlen - 130, seqlen))


def test_more_heads_than_fit_into_a_grid_axis():
    q, k, v = make_qkv(9_000, 8, 3, 5, 16, dtype=torch.float16, device="cuda")
    assert_matches_oracle(ea.attention(q, k, v, **ALL, impl="triton"), q, k, v)


@pytest.mark.xdist_group("memory")
@pytest.mark.parametrize("large", ["queries", "keys"])
def test_tensors_beyond_two_to_the_31_elements(large):
    lengths = (65_537, 77) if large == "queries" else (40, 65_537)
    q = randn(16, 33, lengths[0], 64)
    k, v = (randn(16, 33, lengths[1], 64) for _ in range(2))
    assert max(q.numel(), k.numel()) > 2**31
    actual = ea.attention(q, k, v, **ALL, impl="triton")
    for batch, head in ((0, 0), (15, 32)):
        assert_rows_match(actual, q, k, v, batch, head, slice(lengths[0] - 30, lengths[0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [40, 128, 160])
def test_every_candidate_of_autotuning_is_right(head_dim, dtype):
    q, k, v = make_qkv(1, 2, 200, 333, head_dim, dtype=dtype, device="cuda")
    candidates = plain_candidates(call_target(q), head_dim, head_dim, dtype, seqlen_k=333)
    ran = those_that_fit(candidates, q, k, v)
    assert candidates[0] in ran, "the configuration of the table must fit"
    assert len(ran) >= min(2, len(candidates))  # float32 has one candidate


def test_autotuning_measures_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(autotune, "forward_candidates", plain_candidates)  # test_schedules.py tests the other schedules
    q, k, v = (randn(1, 8, 1000, 64) for _ in range(3))
    tuned = launch.attention_forward(AttentionCall(q, k, v, **ALL), autotune=True)
    assert_rows_match(tuned, q, k, v, 0, 7, slice(900, 1000))
    assert (tmp_path / "entropy-attn" / "forward.json").exists()
    monkeypatch.setattr(autotune, "_fastest", lambda *_: pytest.fail("measured again"))
    launch.attention_forward(AttentionCall(q[:, :, :900], k, v, **ALL), autotune=True)


def test_the_same_call_gives_the_same_bits():
    q, k, v = (randn(2, 8, 1111, 80) for _ in range(3))
    first = ea.attention(q, k, v, **ALL, impl="triton")
    for _ in range(5):
        assert_same_bits(first, ea.attention(q, k, v, **ALL, impl="triton"))


def test_another_stream_and_a_cuda_graph():
    q, k, v = (randn(1, 8, 500, 64) for _ in range(3))
    expected = ea.attention(q, k, v, **ALL, impl="triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        beside = ea.attention(q, k, v, **ALL, impl="triton")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ea.attention(q, k, v, **ALL, impl="triton")
    for t in filter(torch.is_tensor, captured):
        t.fill_(float("nan"))
    graph.replay()
    assert_same_bits(expected, beside)
    assert_same_bits(expected, captured)


def test_auto_uses_the_kernel_for_statistics_and_torch_for_unsupported_gradients():
    q, k, v = (randn(1, 2, 70, 64) for _ in range(3))
    assert_same_bits(ea.attention(q, k, v, **ALL), ea.attention(q, k, v, **ALL, impl="triton"))
    q.requires_grad_()
    ea.attention(q, k, v, **ALL).entropy.sum().backward()
    assert q.grad.isfinite().all() and q.grad.any()


def test_memory_holds_outputs_only():
    q, k, v = (randn(1, 8, 16_384, 64) for _ in range(3))
    ea.attention(q, k, v, **ALL, impl="triton")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = ea.attention(q, k, v, **ALL, impl="triton")
    outputs = sum(t.numel() * t.element_size() for t in filter(torch.is_tensor, result))
    assert torch.cuda.max_memory_allocated() - before <= outputs + 2**21
