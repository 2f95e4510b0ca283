"""`attention` with key groups and all statistics by the kernels, through the public call, against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import entropy_attn as ea
from entropy_attn.ops import choice
from tests.kernels.calls import DEVICE
from tests.ops.test_key_groups import ALL, BIAS, FACTOR, FIELDS, FORMS, GROUPS, NQ, TABLE, definition, named
from tests.support.oracle import make_qkv


def in_float32(value: Any) -> Any:
    """Tensors, also in pairs of ranges and values, in a dtype that the kernels read; the numbers of groups stay."""
    if isinstance(value, Tensor):
        return value.to(DEVICE, torch.float32) if value.is_floating_point() else value
    return [(keys, in_float32(number)) for keys, number in value] if isinstance(value, list) else value


@pytest.mark.parametrize("form", FORMS)
def test_every_result_is_that_of_the_definition(form):
    options, factor, bias = FORMS[form]
    options = {name: in_float32(value) for name, value in options.items()}
    q, k, v = make_qkv(head_dim=16, head_dim_v=24, device=DEVICE)
    mask = None
    if form in ("by head and sample", "some queries", "groups of queries"):
        mask = torch.rand(2, 1, NQ, 47, generator=torch.Generator().manual_seed(6)) > 0.3
    given = None if mask is None else mask.to(DEVICE)
    result = ea.attention(q, k, v, attn_mask=given, scale=0.3, impl="triton", **options, **ALL)
    wanted = definition(*(t.cpu() for t in (q, k, v)), factor, bias, mask=mask, scale=0.3)
    for name in FIELDS:
        found = getattr(result, name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.cpu().double(), wanted[name], rtol=1e-5, atol=1e-5, msg=named(name))


@pytest.mark.parametrize("rows", [{}, {"key_rows": (4, 20)}, {"key_rows": GROUPS}])
def test_gradients_of_query_key_and_value(rows):
    """In the groups of queries, each has a launch; autograd adds the gradients of their keys."""
    tables = {"key_scale": FACTOR, "key_bias": BIAS}
    if isinstance(rows.get("key_rows"), Tensor):
        tables = {"key_scale": 1.0 + 0.5 * TABLE, "key_bias": TABLE}
    options = {name: in_float32(value) for name, value in (tables | rows).items()}
    q, k, v = make_qkv(heads=1, head_dim=16, device=DEVICE, requires_grad=True)

    def gradients(impl: str) -> tuple[Tensor, ...]:
        result = ea.attention(q, k, v, impl=impl, return_lse=True, return_entropy=True, map_keys=(3, 20), **options)
        assert [t is not None for t in result] == [True] * 4 + [False] * 3
        return torch.autograd.grad(sum((t * t).sum() for t in result[:4]), (q, k, v))

    for found, wanted in zip(gradients("triton"), gradients("reference"), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_heads_of_key_and_value_that_differ():
    q, k, v = make_qkv(1, 4, heads_kv=2, head_dim=16, device=DEVICE)
    options = {"key_scale": in_float32(FACTOR), "statistics": ("variance", "max"), "enable_gqa": True}
    found, wanted = (ea.attention(q, k, v[:, :1], impl=impl, **options) for impl in ("triton", "reference"))
    for name in ("out", "variance", "max"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-5)


def test_what_the_kernels_refuse():
    q, k, v = make_qkv(head_dim=16, device=DEVICE)
    table = in_float32(FACTOR)

    def refused(message: str, *tensors: Tensor, **options: Any) -> None:
        reasons = ea.unsupported_reasons(*(tensors or (q, k, v)), **options)
        assert len(reasons) == 1 and message in reasons[0], reasons
        with pytest.raises(ea.Unsupported, match="triton"):
            ea.attention(*(tensors or (q, k, v)), impl="triton", **options)

    refused("key_scale of torch.float64 is not float16, bfloat16 or float32", key_scale=FACTOR.to(DEVICE))
    refused("key_bias of torch.float64", key_bias=BIAS.to(DEVICE))
    refused("no gradient of key_scale: detach it", key_scale=table.clone().requires_grad_())
    refused("no gradient of key_bias: detach it", key_bias=table.clone().requires_grad_())
    grown = q.clone().requires_grad_(), k, v
    refused("no gradient of the statistic 'variance'", *grown, statistics=("variance",))
    refused("no gradient of the statistic 'max'", *grown, statistics=("max",))
    refused("no gradient of the statistic 'mass'", *grown, statistics=("mass",), mass_keys=(0, 3))
    with torch.no_grad():
        assert not ea.unsupported_reasons(*grown, statistics=("variance",), key_scale=table.requires_grad_())


def test_a_dispatch_mode_records_no_statistics_of_rows():
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v = make_qkv(head_dim=16, device=DEVICE)
    with FlopCounterMode(display=False), pytest.raises(ea.Unsupported, match="'variance', 'max' and 'mass' are not in"):
        ea.attention(q, k, v, statistics=("variance",), impl="triton")


def test_auto_takes_the_kernels_on_a_gpu(monkeypatch):
    class OnCuda(torch.Tensor):
        device = torch.device("cuda:0")

    q = torch.zeros(1, 2, 5, 16).as_subclass(OnCuda)
    for options in ({"key_scale": torch.ones(1, 1, 1, 5)}, {"key_bias": torch.ones(1, 1, 1, 5)}, {"return_max": True}):
        call = choice.AttentionCall(q, q, q, **options)
        with monkeypatch.context() as patch:
            patch.setattr(choice, "TRITON", choice.IMPLEMENTATIONS["reference"])  # one without reasons
            assert choice.automatic(call).name == "reference"
