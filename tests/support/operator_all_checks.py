"""Checks of the operator of key groups and statistics of rows that every implementation has to pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import entropy_attn as ea
from entropy_attn.ops import operator_all
from tests.support.call_layouts import LAYOUTS
from tests.support.operator_checks import gradients, loss, strict_strides
from tests.support.oracle import make_qkv

NQ, NK = 13, 20
STATISTICS: dict[str, Any] = {"statistics": ("lse", "entropy", "variance", "max", "mass"), "mass_keys": (1, 9)}
FORMS = ("pairs", "numbers", "a table", "groups", "no tables")
EVERY = {**STATISTICS, "map_keys": (2, 7)}


def key_arguments(device: str) -> dict[str, dict[str, Any]]:
    """`key_scale`, `key_bias` and `key_rows` in every form, for batch 2 and 2 heads."""
    generator = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device) + 0.5

    groups = torch.randint(0, 3, (NQ,), generator=generator)
    return {
        "pairs": {
            "key_scale": [((0, 5), 1.3), (slice(7, 9), rand(2, 2))],
            "key_bias": [((8, NK), rand(2)), ((3, 6), -1e4)],
            "key_rows": (2, 9),
        },
        "numbers": {"key_bias": [((-4, NK), 0.3)]},
        "a table": {"key_scale": rand(2, 1, NK), "key_bias": rand(NK)},
        "groups": {"key_scale": rand(2, 2, 3, NK), "key_bias": rand(1, 2, 3, NK), "key_rows": groups},
        "no tables": {},
    }


def results(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return tuple(t for t in ea.attention(q, k, v, **options) if t is not None)


def check_forward(impl: str, device: str, forms: Iterable[str] = FORMS) -> None:
    """A graph without breaks has the results of the eager call, bit for bit."""
    q, k, v = make_qkv(2, 2, NQ, NK, 16, device=device)
    mask = torch.rand(2, 1, NQ, NK, device=device) > 0.2
    for name in forms:
        given = key_arguments(device)[name]
        for asked in (EVERY, {}) if given else (EVERY,):
            options = {**given, **asked, "attn_mask": mask, "impl": impl}
            torch._dynamo.reset()
            compiled = torch.compile(results, backend="aot_eager", fullgraph=True)
            eager = results(q, k, v, **options)
            for ours, other in zip(compiled(q, k, v, **options), eager, strict=True):
                assert torch.equal(ours, other) and not ours.isnan().any(), f"{name}, {asked}"
                assert ours.dtype == other.dtype


def check_operator(name: str, impl: str, device: str, *, of_tables: bool = True) -> None:
    """torch.library.opcheck of a form of key groups: schema, fake results, autograd, and a traced backward pass."""
    q, k, v = make_qkv(2, 2, NQ, NK, 16, device=device, requires_grad=True)
    given, asked = key_arguments(device)[name], EVERY if of_tables else {"map_keys": (2, 7)}
    with Calls() as calls:
        torch.compile(results, backend=calls.backend, fullgraph=True)(q, k, v, impl=impl, **given, **asked)
    (arguments,) = calls.made
    torch.library.opcheck(operator_all._attention_all, arguments)


class Calls:
    """A backend of torch.compile that keeps the arguments of our operator."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        torch._dynamo.reset()

    def backend(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        made = self.made

        class Kept(torch.fx.Interpreter):
            def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                if "attention_all" in str(target):
                    made.append(args)
                return super().call_function(target, args, kwargs)

        return lambda *given: Kept(graph).run(*given)


def check_gradients(impl: str, device: str, forms: Iterable[str] = FORMS, *, of_tables: bool = True) -> None:
    """Of everything that is differentiable eagerly."""
    tensors = make_qkv(2, 2, NQ, NK, 16, device=device)
    scale = torch.tensor([0.3, -0.2], device=device)
    mask = torch.randn(NQ, NK, device=device)
    for name in forms:
        given = key_arguments(device)[name]
        tables = {key: t for key, t in given.items() if isinstance(t, Tensor) and t.is_floating_point()}
        leaves = (*tensors, scale, *((mask, *tables.values()) if of_tables else ()))

        def total(
            q: Tensor, k: Tensor, v: Tensor, scale: Tensor, *rest: Tensor, given: Any = given, tables: Any = tables
        ) -> Tensor:
            options = {**given, "scale": scale, "attn_mask": None, "return_lse": True, "return_entropy": True}
            if of_tables:
                options |= {"attn_mask": rest[0], **dict(zip(tables, rest[1:], strict=True)), **STATISTICS}
            if of_tables and isinstance(given.get("key_scale"), list):
                options |= {"key_scale": [((0, 5), 1.3), (slice(7, 9), scale)]}
            return loss(ea.attention(q, k, v, impl=impl, map_keys=(2, 7), **options))

        torch._dynamo.reset()
        compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
        for ours, eager in zip(gradients(compiled, leaves), gradients(total, leaves), strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)


def check_frames(impl: str, device: str) -> None:
    """One graph for the first lengths and one for all others, for any numbers, tables and groups."""

    def of_numbers(q: Tensor, k: Tensor, v: Tensor, factor: float, bias: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        text = (0, 7)
        given = {"key_scale": [(text, factor)], "key_bias": [((8, k.shape[2]), factor)], "key_rows": (4, q.shape[2])}
        return results(q, k, v, scale=0.1 * factor, impl=impl, **given, **STATISTICS)

    def of_table(q: Tensor, k: Tensor, v: Tensor, factor: float, bias: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        return results(q, k, v, key_bias=bias * factor, key_rows=groups, impl=impl)

    for function in (of_numbers, of_table):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(function, backend=counter, fullgraph=True)
        frames = []
        for step, (seqlen, groups) in enumerate(((24, 2), (25, 3), (32, 4), (40, 2), (63, 5))):
            q, k, v = make_qkv(1, 2, seqlen, seqlen, 16, device=device, seed=step)
            bias = torch.randn(groups, seqlen, device=device)
            arguments = (q, k, v, 1.2 + 0.1 * step, bias, torch.arange(seqlen) % groups)
            for ours, eager in zip(compiled(*arguments), function(*arguments), strict=True):
                assert torch.equal(ours, eager)
            frames.append(counter.frame_count)
        assert frames == [1, 2, 2, 2, 2], f"{function.__name__}: {frames}"


def check_layouts(impl: str, device: str) -> None:
    """A compiled training step: each result of an operator has the strides of its fake result."""

    def step(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return loss(ea.attention(q, k, v, key_bias=bias, map_keys=(1, 3), return_entropy=True, impl=impl))

    for name in ("sequence first", "heads expanded", "columns outside"):
        tensors = tuple(LAYOUTS[name]().to(device) for _ in range(3))
        bias = torch.linspace(0.0, 1.0, tensors[1].shape[2], device=device)
        torch._dynamo.reset()
        backend = aot_autograd(fw_compiler=strict_strides, bw_compiler=strict_strides)
        compiled = torch.compile(step, backend=backend, fullgraph=True)
        found, expected = (
            torch.autograd.grad(function(*leaves, bias), leaves)
            for function in (compiled, step)
            for leaves in [[t.detach().requires_grad_() for t in tensors]]
        )
        for ours, eager in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
