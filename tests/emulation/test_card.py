"""Calls on CPU tensors take the complete path to a card: operator, plans, autograd, the autotuner, torch.compile."""

from __future__ import annotations

import pytest
import torch

import entropy_attn as ea
from entropy_attn.kernels.common import plans, support
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.forward import autotune, launch
from tests.support.oracle import assert_matches_oracle, make_qkv

from . import build, card
from .card import emulated

TARGETS = ("sm_80", "sm_90")


@pytest.mark.parametrize("target", TARGETS)
def test_forward_by_triton_and_by_plan(target):
    q, k, v = make_qkv(1, 2, 70, 133, 64, dtype=torch.float16)
    with emulated(target) as emulation:
        first = ea.attention(q, k, v, impl="triton", return_lse=True, return_entropy=True)
        made = plans.count()
        again = ea.attention(q.clone(), k.clone(), v.clone(), impl="triton", return_lse=True, return_entropy=True)
        assert plans.count() == made == 1
        assert emulation.memory.unwritten(first.out) == emulation.memory.unwritten(first.lse) == 0
    assert [one.grid for one in emulation.launches] == [(2, 1, 1)] * 2
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert_matches_oracle(tuple(first), q, k, v)


@pytest.mark.parametrize(("seqlen_k", "kernels"), [(77, {"rows", "key"}), (150, {"rows", "query", "key"})])
def test_backward_through_autograd(seqlen_k, kernels):
    """With few keys, the key kernel computes dQ as well."""
    inputs = make_qkv(1, 2, 35, seqlen_k, 64, dtype=torch.bfloat16, requires_grad=True)
    with emulated("sm_90") as emulation:
        results = ea.attention(*inputs, impl="triton", return_entropy=True, map_keys=(0, 77))
        loss = results.out.float().square().sum() + results.entropy.sum() + results.map.square().sum()
        found = torch.autograd.grad(loss, inputs)
    prefix = "attention_backward_"
    launched = {one.kernel for one in emulation.launches}
    assert {name.removeprefix(prefix) for name in launched if name.startswith(prefix)} == kernels
    assert "attention_short_keys" in launched or seqlen_k > 77
    wide = [t.detach().double().requires_grad_() for t in inputs]
    truth = ea.attention(*wide, impl="reference", return_entropy=True, map_keys=(0, 77))
    loss = truth.out.square().sum() + truth.entropy.sum() + truth.map.square().sum()
    for a, b in zip(found, torch.autograd.grad(loss, wide), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0.05, atol=0.02 * b.abs().max().item())


def test_the_autotuner_measures_candidates(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timed = []

    def timer(run):
        run()
        timed.append(len(timed))
        return float(len(timed))

    monkeypatch.setattr(autotune, "_default_timer", lambda: timer)
    monkeypatch.setattr(autotune, "forward_candidates", lambda **o: autotune_candidates(**o)[:2])
    from entropy_attn.kernels.forward.configs import forward_candidates as autotune_candidates

    q, k, v = make_qkv(1, 1, 40, 70, 64, dtype=torch.float16)
    with emulated("sm_80") as emulation:
        out, _, _ = launch.attention_forward(AttentionCall(q, k, v), autotune=True)
    assert len(timed) == 2 and len(emulation.launches) == 3
    assert_matches_oracle((out,), q, k, v)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_function(backend):
    q, k, v = make_qkv(1, 1, 40, 70, 64, dtype=torch.float16)
    compiled = torch.compile(lambda *t: ea.attention(*t, impl="triton", return_lse=True)[:2], backend=backend)
    with emulated("sm_90") as emulation, torch.no_grad():
        results = compiled(q, k, v)
    assert len(emulation.launches) == 1
    assert_matches_oracle(tuple(results), q, k, v)


def test_the_order_of_the_warps_changes_nothing():
    q, k, v = make_qkv(1, 1, 70, 200, 64, dtype=torch.float16)
    results = []
    for seed in (0, 1, 2):
        with emulated("sm_90", seed=seed):
            results.append(ea.attention(q, k, v, impl="triton").out)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_an_output_that_is_read_before_it_is_written_is_found():
    q, k, v = make_qkv(1, 1, 40, 70, 64, dtype=torch.float16)
    with emulated("sm_80") as emulation:
        unwritten = card._poisoned(emulation, q.shape, q.dtype, q.device)
        with pytest.raises(card.Finding, match="no kernel has written"):
            ea.attention(unwritten, k, v, impl="triton")
        unwritten.copy_(q)  # torch's writes count
        assert_matches_oracle(tuple(ea.attention(unwritten, k, v, impl="triton"))[:1], q, k, v)


def test_the_context_restores_everything():
    before = support._target, support._environment_reasons
    with pytest.raises(KeyError), emulated("sm_80"):
        with pytest.raises(RuntimeError, match="sm_80 is already emulated in this process"), emulated("sm_90"):
            pass
        raise KeyError
    assert (support._target, support._environment_reasons) == before
    with pytest.raises(RuntimeError, match="no card is emulated"):
        card.card()


def test_without_a_compiler_the_tests_are_skipped_with_a_reason(monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: None)
    with pytest.raises(pytest.skip.Exception, match="no C compiler"), emulated("sm_80"):
        pass
