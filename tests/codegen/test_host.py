"""A launch by plan equals the launch through Triton's usual path, and costs the host little."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

import entropy_attn as ea
from entropy_attn.kernels.backward.launch import attention_backward
from entropy_attn.kernels.common import plans
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.head_dims import in_chunks
from entropy_attn.kernels.common.tensors import Strided
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.forward.configs import SCHEDULES, ForwardConfig, forward_candidates, forward_config
from entropy_attn.kernels.forward.launch import attention_forward
from entropy_attn.kernels.maps.configs import MapConfig, map_config
from entropy_attn.kernels.maps.launch import attention_forward_with_map

from . import host
from .host import Launched, host_calls, recorded


def tensors(
    batch: int, heads: int, queries: int, keys: int, dim: int, *, layout: str = "bhnd", skip: int = 0,
    heads_kv: int | None = None, dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Query, key and value; `skip` elements before the first make them unaligned."""

    def one(n: int, h: int) -> Tensor:
        flat = torch.randn(skip + batch * h * n * dim).to(dtype)[skip:]
        return flat.view(batch, n, h, dim).transpose(1, 2) if layout == "bnhd" else flat.view(batch, h, n, dim)

    return one(queries, heads), one(keys, heads_kv or heads), one(keys, heads_kv or heads)


def random_mask(*shape: int) -> Tensor:
    return torch.rand(shape) > 0.5


# Neighbors differ in one property that the compiler specializes on, or that an argument depends on.
CALLS: dict[str, Callable[[], tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]]] = {
    "plain": lambda: (tensors(2, 8, 256, 256, 64), {}),
    "other length": lambda: (tensors(2, 8, 256, 255, 64), {}),
    "a multiple of 16": lambda: (tensors(2, 8, 256, 272, 64), {}),
    "one query": lambda: (tensors(2, 8, 1, 256, 64), {}),
    "one head": lambda: (tensors(2, 1, 256, 256, 64), {}),
    "tokens outside": lambda: (tensors(2, 8, 256, 256, 64, layout="bnhd"), {}),
    "not aligned": lambda: (tensors(2, 8, 256, 256, 64, skip=1), {}),
    "aligned to 8 bytes": lambda: (tensors(2, 8, 256, 256, 64, skip=4), {}),
    "bfloat16": lambda: (tensors(2, 8, 256, 256, 64, dtype=torch.bfloat16), {}),
    "float32": lambda: (tensors(2, 8, 256, 256, 64, dtype=torch.float32), {}),
    "head dim 40": lambda: (tensors(2, 8, 256, 256, 40), {}),
    "head dim 80": lambda: (tensors(2, 8, 256, 256, 80), {}),
    "short keys": lambda: (tensors(2, 8, 256, 77, 64), {}),
    "grouped heads": lambda: (tensors(2, 8, 256, 256, 64, heads_kv=2), {"enable_gqa": True}),
    "causal": lambda: (tensors(2, 8, 256, 256, 64), {"is_causal": True}),
    "lse": lambda: (tensors(2, 8, 256, 256, 64), {"return_lse": True}),
    "entropy": lambda: (tensors(2, 8, 256, 256, 64), {"return_entropy": True}),
    "scale": lambda: (tensors(2, 8, 256, 256, 64), {"scale": 0.3}),
    "another scale": lambda: (tensors(2, 8, 256, 256, 64), {"scale": 0.7}),
    "negative scale": lambda: (tensors(2, 8, 256, 256, 64), {"scale": -0.3}),
    "no scale": lambda: (tensors(2, 8, 256, 256, 64), {"scale": 0.0}),
    "scale of each head": lambda: (tensors(2, 8, 256, 256, 64), {"scale": torch.rand(8)}),
    "strided scale": lambda: (tensors(2, 8, 256, 256, 64), {"scale": torch.rand(16)[::2]}),
    "scale of each sample and head": lambda: (tensors(2, 8, 256, 256, 64), {"scale": torch.rand(2, 8)}),
    "scale of each sample": lambda: (tensors(2, 8, 256, 256, 64), {"scale": torch.rand(2, 1)}),
    "float64 scale": lambda: (tensors(2, 8, 256, 256, 64), {"scale": torch.rand(8, dtype=torch.float64)}),
    "mask": lambda: (tensors(2, 8, 256, 256, 64), {"attn_mask": random_mask(256, 256)}),
    "mask of keys": lambda: (tensors(2, 8, 256, 256, 64), {"attn_mask": random_mask(2, 1, 1, 256)}),
    "added mask": lambda: (tensors(2, 8, 256, 256, 64), {"attn_mask": torch.randn(256, 256)}),
    "factor by key": lambda: (tensors(2, 8, 256, 256, 64), {"key_scale": torch.rand(256)}),
    "factor by key and head": lambda: (tensors(2, 8, 256, 256, 64), {"key_scale": torch.rand(8, 256)}),
    "bias by key": lambda: (tensors(2, 8, 256, 256, 64), {"key_bias": torch.rand(256)}),
    "bias by key in float16": lambda: (tensors(2, 8, 256, 256, 64), {"key_bias": torch.rand(256).half()}),
    "bias of some queries": lambda: (tensors(2, 8, 256, 256, 64), {"key_bias": torch.rand(256), "key_rows": (16, 32)}),
    "bias of other queries": lambda: (tensors(2, 8, 256, 256, 64), {"key_bias": torch.rand(256), "key_rows": (16, 48)}),
    "variance": lambda: (tensors(2, 8, 256, 256, 64), {"statistics": ("variance",)}),
    "maximum": lambda: (tensors(2, 8, 256, 256, 64), {"statistics": ("max",)}),
    "mass": lambda: (tensors(2, 8, 256, 256, 64), {"statistics": ("mass",), "mass_keys": (0, 16)}),
    "mass of other keys": lambda: (tensors(2, 8, 256, 256, 64), {"statistics": ("mass",), "mass_keys": (0, 32)}),
    "map and variance": lambda: (tensors(2, 8, 1024, 77, 64), {"map_keys": (0, 77), "statistics": ("variance",)}),
    "map and bias by key": lambda: (tensors(2, 8, 1024, 77, 64), {"map_keys": (0, 77), "key_bias": torch.rand(77)}),
    "map": lambda: (tensors(2, 8, 1024, 77, 64), {"map_keys": (0, 77)}),
    "part of the map": lambda: (tensors(2, 8, 1024, 77, 64), {"map_keys": (1, 16)}),
    "map and entropy": lambda: (tensors(2, 8, 1024, 77, 64), {"map_keys": (0, 77), "return_entropy": True}),
    "map with a scale": lambda: (tensors(2, 8, 1024, 77, 64), {"map_keys": (0, 77), "scale": 0.3}),
    "map of long keys": lambda: (tensors(2, 8, 256, 333, 64), {"map_keys": (3, 80)}),
}


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def launched(launches: list[Launched], inputs: tuple[Tensor, ...], options: dict[str, Any]) -> list[Launched]:
    return host.launched(
        launches, lambda: ea.attention(*inputs, **options, impl="triton"), (*inputs, *options.values())
    )


def test_a_plan_launches_the_same_as_tritons_path(monkeypatch):
    with recorded() as launches:
        for make in CALLS.values():  # make all plans before the first is used
            inputs, options = make()
            launched(launches, inputs, options)
        for name, make in CALLS.items():
            inputs, options = make()
            number = plans.count()
            by_plan = launched(launches, inputs, options)
            assert plans.count() == number, f"{name}: a new plan was made"
            with monkeypatch.context() as patch:
                patch.setattr(plans, "_plans", {})
                by_compiler = launched(launches, inputs, options)
            assert by_plan and by_plan == by_compiler, name


@pytest.mark.parametrize("shared", [(0, 0, 0), (0, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_one_tensor_as_several_arguments(monkeypatch, shared):
    """Such a call and a call with different tensors do not share a plan."""
    with recorded() as launches:
        for first, second in ((shared, (0, 1, 2)), ((0, 1, 2), shared)):
            plans.forget()
            for indices in (first, second):
                given = tensors(2, 8, 256, 256, 64)
                inputs = tuple(given[i] for i in indices)
                launched(launches, inputs, {"return_entropy": True})
            by_plan = launched(launches, inputs, {"return_entropy": True})
            with monkeypatch.context() as patch:
                patch.setattr(plans, "_plans", {})
                assert by_plan == launched(launches, inputs, {"return_entropy": True})


def test_calls_that_compile_differently_have_different_plans():
    same = {"aligned to 8 bytes", "scale", "another scale", "no scale", "map with a scale"}  # reuse an earlier plan
    with recorded() as launches:
        for name, make in CALLS.items():
            before = plans.count()
            inputs, options = make()
            launched(launches, inputs, options)
            assert (plans.count() > before) == (name not in same), name


def test_a_plan_keeps_no_tensor_alive():
    import gc
    import weakref

    with recorded(keep=False):
        inputs, options = CALLS["entropy"]()
        result = ea.attention(*inputs, **options, impl="triton")
        seen = [weakref.ref(t) for t in (*inputs, result.out, result.entropy)]
        del inputs, result
        gc.collect()
        assert not any(ref() is not None for ref in seen)


class Recorder:
    """A stand-in for a compiled kernel that keeps the arguments of its last launch."""

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        return lambda *arguments: setattr(self, "arguments", arguments)


def test_a_plan_replaces_tensors_inside_of_arguments():
    """In a tuple, twice in one tuple, and as the tensor of a descriptor; everything else stays."""
    first, other = (tuple(torch.zeros(4, 16) for _ in range(2)) for _ in range(2))
    described = TensorDescriptor.from_tensor(first[1], [4, 16])
    compiled = Recorder()
    arguments = [
        first[0],
        Strided(first[1], 16, 1),
        (first[0], 7, first[1], None),
        described,
        in_chunks(80),
        3,
        (first[1],),
    ]
    plans.Plan(compiled, 1, arguments, first, scratch=False).launch(other)
    seen = compiled.arguments
    assert seen[0] is other[0] and seen[1] == (other[1], 16, 1, 0, 0) and seen[4:6] == (in_chunks(80), 3)
    assert seen[2][0] is other[0] and seen[2][2] is other[1] and seen[2][1::2] == (7, None)
    assert isinstance(seen[6], tuple) and seen[6][0] is other[1]
    assert seen[3].base is other[1] and seen[3].block_shape == [4, 16] and described.base is first[1]


@pytest.mark.parametrize("hide", [lambda t: (0, (t,)), lambda t: (0, TensorDescriptor.from_tensor(t, [4, 16]))])
def test_a_plan_does_not_overlook_tensors_that_are_nested_deeper(hide):
    tensor = torch.zeros(4, 16)
    with pytest.raises(ValueError, match="expected varying values at most one tuple deep"):
        plans.Plan(Recorder(), 1, [hide(tensor)], (tensor,), scratch=False)


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(plans, "MOST", 3)
    with recorded(keep=False):
        for n in range(200, 210):
            ea.attention(*tensors(1, 1, n, n, 64), impl="triton")
            assert plans.count() <= 3


@pytest.mark.parametrize(("name", "most"), [("plain", 118), ("entropy", 120), ("short keys", 114), ("map", 120)])
def test_a_repeated_call_costs_the_host_little(name, most):
    """Counted in Python and C function calls."""
    with recorded(keep=False):
        inputs, options = CALLS[name]()
        for _ in range(2):
            ea.attention(*inputs, **options, impl="triton")
        assert host_calls(functools.partial(ea.attention, *inputs, **options, impl="triton")) <= most


def test_calls_with_a_configuration_have_plans(monkeypatch):
    """Each configuration has a plan. It costs the host no more than usual, because kernels are timed with it."""
    inputs = tensors(2, 8, 256, 256, 64)
    configs = forward_candidates("sm_90", 64, 64, torch.float16, seqlen_k=256)
    assert {c.schedule for c in configs} == set(SCHEDULES)
    with recorded() as launches:

        def seen(config: ForwardConfig) -> list[Launched]:
            return host.launched(launches, lambda: attention_forward(call, config=config), inputs)

        call = AttentionCall(*inputs)
        first = [seen(config) for config in configs]
        assert plans.count() == len(configs)
        assert [seen(config) for config in configs] == first and plans.count() == len(configs)
        assert len({str(each) for each in first}) >= len(configs) - 1  # two are the same for a head dim of 64
        attention_forward(call)
        assert plans.count() == len(configs) + 1
    with recorded(keep=False):
        for config in configs * 2:
            calls = host_calls(functools.partial(attention_forward, call, config=config))
            by_table = host_calls(functools.partial(attention_forward, call))
        assert calls <= by_table + 4, (calls, by_table)  # 4: the hash of the configuration


MAPS = (map_config("sm_90", 64, 64, torch.float16, seqlen_k=77), MapConfig(64, (64, 0), 4, 2, one_pass=False))


@pytest.mark.parametrize("config", MAPS, ids=["one pass", "two"])
def test_maps_with_a_configuration_have_plans(config):
    inputs = tensors(2, 8, 256, 77, 64)
    with recorded() as launches:

        def seen(**options: Any) -> list[Launched]:
            return host.launched(launches, lambda: attention_forward_with_map(call, **options), inputs)

        call = AttentionCall(*inputs, map_keys=(0, 77))
        first, by_table = seen(config=config), seen()
        assert len(first) == (1 if config.one_pass else 2) and plans.count() == 2
        assert (seen(config=config), seen()) == (first, by_table) and plans.count() == 2


def every_pass() -> dict[str, Callable[[], object]]:
    """A call of each pass, with new tensors."""
    q, k, v = tensors(2, 8, 256, 256, 64)
    text = tensors(2, 8, 256, 77, 64)
    rows = torch.randn(2, 8, 256)
    call = AttentionCall(q, k, v)
    return {
        "forward": lambda: ea.attention(q, k, v, impl="triton"),
        "configuration": lambda: attention_forward(call, config=forward_config("sm_90", 64, 64, q.dtype)),
        "map": lambda: ea.attention(*text, map_keys=(0, 77), impl="triton"),
        "map after the forward": lambda: ea.attention(q, k, v, map_keys=(0, 77), return_lse=True, impl="triton"),
        "backward": lambda: attention_backward(call, q, rows, None, grad_out=q),
        "map's backward": lambda: attention_backward(
            AttentionCall(q, k, v, map_keys=(0, 9)), None, rows, None, grad_map=torch.ones(2, 256, 9)
        ),
    }


@pytest.mark.parametrize("name", every_pass())
def test_only_a_repeated_call_can_be_captured(monkeypatch, name):
    """Compiling and loading a kernel would break a capture, so the first call raises before it launches anything."""
    with recorded() as launches:
        ea.attention(
            *tensors(2, 8, 256, 256, 64), return_lse=True, impl="triton"
        )  # the forward pass of a map is such a call, too
        launches.clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            with pytest.raises(RuntimeError, match=r"call .*once before the capture"):
                every_pass()[name]()
        assert launches == []
        every_pass()[name]()
        launches.clear()
        asked = []
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: asked.append(1) or True)
        every_pass()[name]()
        assert launches and asked == []


def test_a_call_that_failed_does_not_count_as_the_first(monkeypatch):
    call = AttentionCall(*tensors(2, 8, 256, 256, 64))
    with recorded():
        with monkeypatch.context() as patch:
            patch.setattr(launch, "first_launch", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                attention_forward(call)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="once before the capture"):
            attention_forward(call)


def test_kernels_without_plans_are_captured_after_their_first_call(monkeypatch):
    """As on AMD, where each call takes Triton's usual path."""
    monkeypatch.setattr(torch.version, "hip", "6.2")
    call = AttentionCall(*tensors(2, 8, 256, 256, 64))
    with recorded() as launches:
        attention_forward(call)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        attention_forward(call)
        assert len(launches) == 2 and list(plans._plans.values()) == [None]
