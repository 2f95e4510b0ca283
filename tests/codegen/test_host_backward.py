"""Launches of the backward pass by plan equal those through Triton's usual path, and cost the host little."""

from __future__ import annotations

import functools
import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from entropy_attn.kernels.backward import launch as launch_backward
from entropy_attn.kernels.backward.launch import Gradients, attention_backward
from entropy_attn.kernels.common import plans
from entropy_attn.kernels.common.call import AttentionCall

from .host import Launched, host_calls, launched, recorded
from .test_host import random_mask, tensors

GRADS = ("out", "lse", "entropy", "map")
OF_CALL = ("attn_mask", "is_causal", "scale", "map_keys", "key_scale", "key_bias", "key_rows")
Call = tuple[tuple[Tensor, ...], dict[str, Any]]


def shifted(t: Tensor) -> Tensor:
    """A copy at an address that is no multiple of 16 bytes."""
    flat = torch.empty(t.numel() + 1, dtype=t.dtype)[1:]
    return flat.copy_(t.flatten()).view(t.shape)


def call(
    grads: tuple[str, ...] = ("out",), *, shape: tuple = (2, 8, 256, 256, 64), dtype: torch.dtype = torch.bfloat16,
    map_keys: tuple[int, int] = (0, 77), edit: dict[str, Callable[[Tensor], Tensor]] | None = None,
    heads_kv: int | None = None, layout: str = "bhnd", skip: int = 0, **options: Any,
) -> Call:  # fmt: skip
    """Tensors and options of a call of `attention_backward`; `edit` maps names of tensors to functions."""
    batch, heads, queries, _, _ = shape
    query, key, value = tensors(*shape, dtype=dtype, heads_kv=heads_kv, layout=layout, skip=skip)
    rows = (batch, heads, queries)
    given = {"query": query, "key": key, "value": value}
    given |= {"out": torch.randn_like(query), "lse": torch.randn(rows), "entropy": torch.rand(rows)}
    made = {"out": torch.randn_like(query), "lse": torch.randn(rows), "entropy": torch.rand(rows),
            "map": torch.randn(batch, queries, map_keys[1] - map_keys[0])}  # fmt: skip
    options |= {f"grad_{name}": made[name] for name in grads} | ({"map_keys": map_keys} if "map" in grads else {})
    for name, change in (edit or {}).items():
        where = options if name in options else given
        where[name] = change(where[name])
    return tuple(given.values()), options


HALF = torch.float16
SMALL = (1, 2, 70, 90, 64)
# Neighbors differ in one property that the compiler specializes on, or that an argument depends on.
CALLS: dict[str, Callable[[], Call]] = {
    "out": call,
    "float16": lambda: call(dtype=HALF),
    "float32": lambda: call(dtype=torch.float32),
    "other length": lambda: call(shape=(2, 8, 256, 255, 64)),
    "one query": lambda: call(shape=(2, 8, 1, 256, 64)),
    "one head": lambda: call(shape=(2, 1, 256, 256, 64)),
    "head dim 40": lambda: call(shape=(2, 8, 256, 256, 40)),
    "head dim 160, by chunk": lambda: call(shape=(2, 8, 256, 256, 160)),
    "tokens outside": lambda: call(layout="bnhd"),
    "not aligned": lambda: call(skip=1),
    "query not aligned": lambda: call(edit={"query": shifted}),
    "key not aligned": lambda: call(edit={"key": shifted}),
    "value not aligned": lambda: call(edit={"value": shifted}),
    "entropy": lambda: call(("entropy",)),
    "entropy not aligned": lambda: call(("entropy",), edit={"entropy": shifted}),
    "of lse": lambda: call(("lse",)),
    "of the map": lambda: call(("map",)),
    "gradient of out not aligned": lambda: call(edit={"grad_out": shifted}),
    "out not aligned": lambda: call(edit={"out": shifted}),
    "lse not aligned": lambda: call(edit={"lse": shifted}),
    "gradient of out expanded": lambda: call(edit={"grad_out": lambda t: t.new_ones(()).expand(t.shape)}),
    "gradient of out strided": lambda: call(edit={"grad_out": lambda t: t.mT.contiguous().mT}),
    "gradient of the entropy not aligned": lambda: call(("entropy",), edit={"grad_entropy": shifted}),
    "gradient of lse not aligned": lambda: call(("lse",), edit={"grad_lse": shifted}),
    "gradient of the map not aligned": lambda: call(("map",), edit={"grad_map": shifted}),
    "gradient of the map strided": lambda: call(("map",), edit={"grad_map": lambda t: t.mT.contiguous().mT}),
    "part of the map": lambda: call(("map",), map_keys=(3, 80)),
    "other part of the map": lambda: call(("map",), map_keys=(4, 81)),
    "grouped heads": lambda: call(heads_kv=2),
    "causal": lambda: call(is_causal=True),
    "few keys": lambda: call(shape=(2, 8, 1024, 77, 64)),
    "few keys, in one part": lambda: call(shape=(2, 8, 256, 77, 64)),
    "few keys in float16": lambda: call(shape=(2, 8, 1024, 77, 64), dtype=HALF),
    "few keys, head dim 80": lambda: call(shape=(2, 8, 1024, 77, 80)),
    "few keys, not the query's": lambda: call(shape=(2, 8, 1024, 77, 64), needs=(False, True, True, False)),
    "scale": lambda: call(scale=0.3),
    "negative scale": lambda: call(scale=-0.3),
    "scale of each head": lambda: call(scale=torch.rand(8)),
    "strided scale": lambda: call(scale=torch.rand(16)[::2]),
    "scale of each sample and head": lambda: call(scale=torch.rand(2, 8), needs=(True, True, True, True)),
    "scale's gradient": lambda: call(scale=torch.rand(8), needs=(False, False, False, True)),
    "all four": lambda: call(scale=torch.rand(8), needs=(True, True, True, True)),
    "one scale's gradient": lambda: call(scale=torch.tensor(0.3), needs=(True, True, True, True)),
    "mask": lambda: call(attn_mask=random_mask(256, 256)),
    "mask of keys": lambda: call(attn_mask=random_mask(2, 1, 1, 256)),
    "added mask": lambda: call(attn_mask=torch.randn(256, 256)),
    "factors of keys": lambda: call(key_scale=torch.rand(2, 8, 1, 256)),
    "factors of keys in float16": lambda: call(key_scale=torch.rand(256).half()[None, None, None], dtype=HALF),
    "biases of keys": lambda: call(key_bias=torch.rand(1, 8, 1, 256)),
    "both, for some queries": lambda: call(
        key_scale=torch.rand(1, 1, 1, 256), key_bias=torch.rand(1, 1, 1, 256), key_rows=(13, 90)
    ),
    "both, for other queries": lambda: call(
        key_scale=torch.rand(1, 1, 1, 256), key_bias=torch.rand(1, 1, 1, 256), key_rows=(13, 91)
    ),
    "few keys with factors": lambda: call(shape=(2, 8, 1024, 77, 64), key_scale=torch.rand(1, 8, 1, 77)),
    "added mask in half": lambda: call(attn_mask=torch.randn(256, 256).half(), dtype=HALF),
    **{f"needs {needs}": lambda needs=needs: call(needs=(*needs, False))
       for needs in itertools.product((True, False), repeat=3) if any(needs) and not all(needs)},
    **{f"{dtype} of {'+'.join(names)}": lambda names=names, dtype=dtype: call(names, shape=SMALL, dtype=dtype)
       for dtype in (HALF, torch.bfloat16, torch.float32) for n in range(1, 5)
       for names in itertools.combinations(GRADS, n)},
}  # fmt: skip
SAME = {"scale", "negative scale"}  # the plan of "out": numbers are not compiled in


def runner(given: Call) -> Callable[[], Gradients]:
    inputs, options = given
    about = {name: options[name] for name in OF_CALL if name in options}
    gradients = {name: value for name, value in options.items() if name not in OF_CALL}
    return functools.partial(attention_backward, AttentionCall(*inputs[:3], **about), *inputs[3:], **gradients)


def seen(launches: list[Launched], given: Call) -> list[Launched]:
    inputs, options = given
    return launched(launches, runner(given), (*inputs, *options.values()))


def test_a_plan_launches_the_same_as_tritons_path(monkeypatch):
    with recorded() as launches:
        for name, make in CALLS.items():  # make all plans before the first is used
            number = plans.count()
            assert seen(launches, make()), name
            assert (plans.count() > number) == (name not in SAME), name
        for name, make in CALLS.items():
            given = make()
            number = plans.count()
            by_plan = seen(launches, given)
            assert plans.count() == number, f"{name}: a new plan was made"
            with monkeypatch.context() as patch:
                patch.setattr(plans, "_plans", {})
                assert by_plan == seen(launches, given), name


@pytest.mark.parametrize("lacking", [False, True])
def test_descriptors_by_plan(monkeypatch, lacking):
    """With a Triton whose loops by pointer have one stage, a repeated call makes descriptors of its own tensors."""
    monkeypatch.setattr(launch_backward, "lacks_fence", lambda target: lacking)
    with recorded() as launches:
        for options in ({}, {"shape": (2, 8, 256, 256, 40), "dtype": HALF}, {"edit": {"key": shifted}}):
            first, second = call(**options), call(**options)
            seen(launches, first)
            number = plans.count()
            by_plan = seen(launches, second)
            assert plans.count() == number
            assert any("descriptor" in str(each.arguments) for each in by_plan) == lacking
            with monkeypatch.context() as patch:
                patch.setattr(plans, "_plans", {})
                assert by_plan == seen(launches, second)


@pytest.mark.parametrize(
    "names", [("query", "key"), ("key", "value"), ("grad_lse", "grad_entropy"), ("out", "grad_out")]
)
def test_one_tensor_as_several_arguments(monkeypatch, names):
    """Such a call and a call with different tensors do not share a plan."""
    indices = dict(zip(("query", "key", "value", "out", "lse", "entropy"), range(6), strict=True))

    def make(shared: bool) -> Call:
        inputs, options = call(("out", "lse", "entropy"), dtype=HALF)
        inputs = list(inputs)
        first, second = ((inputs, indices[n]) if n in indices else (options, n) for n in names)
        if shared:
            second[0][second[1]] = first[0][first[1]]
        return tuple(inputs), options

    with recorded() as launches:
        for order in ((True, False), (False, True)):
            plans.forget()
            for shared in order:
                seen(launches, make(shared))
            assert plans.count() == 2
            for shared in order:
                given = make(shared)
                by_plan = seen(launches, given)
                with monkeypatch.context() as patch:
                    patch.setattr(plans, "_plans", {})
                    assert by_plan == seen(launches, given)


def test_a_plan_keeps_no_tensor_alive():
    with recorded(keep=False):
        inputs, options = call(GRADS, dtype=HALF, scale=torch.rand(8), needs=(True,) * 4)
        results = runner((inputs, options))()
        given = [t for t in (*inputs, *options.values(), *results) if isinstance(t, Tensor)]
        alive = [weakref.ref(t) for t in given]
        del inputs, options, results, given
        gc.collect()
        assert not any(ref() is not None for ref in alive)


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 124), ({"dtype": HALF}, 130), ({"grads": ("out", "entropy")}, 136), ({"grads": GRADS}, 144),
     ({"shape": (2, 8, 256, 256, 160)}, 141), ({"shape": (2, 8, 1024, 77, 64)}, 127)],
)  # fmt: skip
def test_a_repeated_call_costs_the_host_little(options, most):
    with recorded(keep=False), torch.no_grad():
        run = runner(call(**options))
        for _ in range(2):
            run()
        assert host_calls(run) <= most, host_calls(run)
