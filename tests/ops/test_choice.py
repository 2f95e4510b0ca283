"""The choice of an implementation for a call, and the table of implementations."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import entropy_attn as ea
from entropy_attn.kernels.common import support
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.forward.configs import ForwardConfig
from entropy_attn.kernels.forward.measured import Measured
from entropy_attn.ops import choice
from entropy_attn.ops.implementations import IMPLEMENTATIONS, REFERENCE, SDPA, TRITON
from tests.support.oracle import make_qkv


@pytest.fixture
def choices(monkeypatch):
    """The implementation that "auto" would choose on a CUDA device; works on any machine, with tensors without data."""

    class OnCuda(torch.Tensor):
        device = torch.device("cuda:0")

    monkeypatch.setattr(choice, "call_target", lambda query: "sm_90")
    rows = {10: Measured(ForwardConfig(64, 64, 4, 2), 1.0, 1.1), 11: Measured(ForwardConfig(64, 64, 4, 2), 1.1, 1.0)}
    shipped = {("sm_90", 64, bucket, bucket, False): {"a card": row} for bucket, row in rows.items()}
    monkeypatch.setattr(choice, "card_name", lambda device: "a card")
    monkeypatch.setattr("entropy_attn.kernels.forward.measured.table", lambda: shipped)
    monkeypatch.setattr(choice, "table", lambda: shipped)

    def choose(length, head_dim=64, *, dtype=torch.float16, reasons=(), **options):
        triton = dataclasses.replace(choice.TRITON, reasons=lambda call: list(reasons))
        monkeypatch.setattr(choice, "TRITON", triton)
        t = torch.zeros(1, 2, length, head_dim, dtype=dtype).as_subclass(OnCuda)
        return choice.automatic(AttentionCall(t, t, t, **options)).name

    return choose


def test_auto_follows_the_measured_table_for_plain_calls(choices):
    assert choices(1024) == choices(513) == "triton"
    assert choices(1024, scale=0.3) == "triton"
    assert choices(1025) == "sdpa"  # measured: torch is faster
    assert choices(512) == choices(1024, head_dim=40) == "sdpa"  # not measured
    assert choices(1024, dtype=torch.float32) == choices(1024, is_causal=True) == "sdpa"
    assert choices(1024, attn_mask=torch.ones(1, 1, dtype=torch.bool)) == "sdpa"
    assert choices(1024, reasons=["no"]) == "sdpa"


def test_auto_uses_triton_on_cuda_for_results_that_torch_lacks(choices):
    for wanted in ({"return_lse": True}, {"return_entropy": True}, {"map_keys": (0, 1)}, {"scale": torch.ones(2)}):
        assert choices(99, **wanted) == "triton"
        assert choices(99, **wanted, reasons=["no"]) == "sdpa"


def test_the_table_names_each_implementation():
    assert IMPLEMENTATIONS == {"triton": TRITON, "sdpa": SDPA, "reference": REFERENCE}
    assert choice.IMPLS == ("auto", "triton", "sdpa", "reference")
    assert [name for name, each in IMPLEMENTATIONS.items() if each.takes_transforms] == ["reference"]


def test_an_explicit_implementation_serves_or_refuses_a_call(monkeypatch):
    call = AttentionCall(*make_qkv(1, 2, 5, 7, 16))
    assert choice.implementation("sdpa", call) is choice.implementation("auto", call) is SDPA
    assert choice.implementation("reference", call) is REFERENCE
    monkeypatch.setattr(support, "_environment_reasons", lambda device: ("no GPU", "no driver"))
    with pytest.raises(ea.Unsupported, match="no GPU; no driver") as caught:
        choice.implementation("triton", call)
    assert caught.value.impl == "triton" and caught.value.reasons == TRITON.reasons(call) == ["no GPU", "no driver"]


@pytest.mark.parametrize("requested", [(), ("lse",), ("entropy",), ("map",), ("lse", "entropy", "map")], ids="-".join)
@pytest.mark.parametrize("name", ["sdpa", "reference"])
def test_an_implementation_returns_what_the_call_requests(name, requested):
    q, k, v = make_qkv(1, 4, 5, 7, 16, heads_kv=2)
    map_keys = (2, 5) if "map" in requested else None
    call = AttentionCall(
        q, k, v, return_lse="lse" in requested, return_entropy="entropy" in requested, map_keys=map_keys
    )
    results = IMPLEMENTATIONS[name].run(call)
    assert [t is not None for t in results] == [True, *(each in requested for each in ("lse", "entropy", "map"))]
