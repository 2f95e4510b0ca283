"""Checks of the operator that every implementation has to pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import entropy_attn as ea
from entropy_attn.ops import operator
from tests.support.call_layouts import LAYOUTS, UNLIKE
from tests.support.oracle import make_qkv

OPTIONS = {"return_lse": True, "return_entropy": True, "map_keys": (2, 7)}


def loss(result: ea.AttentionOutput) -> Tensor:
    """Every result contributes, each with a different gradient."""
    parts = [t.float().square().sum() for t in result if t is not None]
    return torch.stack(parts).sum()


def step(query: Tensor, key: Tensor, value: Tensor, scale, impl: str) -> Tensor:
    return loss(ea.attention(query, key, value, scale=scale, impl=impl, **OPTIONS))


def gradients(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], *arguments) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(function(*leaves, *arguments), leaves)


def check_operator(impl: str, device: str) -> None:
    """torch.library.opcheck: schema, fake results, autograd, and a traced backward pass."""
    scale = torch.tensor([0.2, -0.3], device=device, requires_grad=True)
    q, k, v = make_qkv(1, 2, 9, 12, 16, device=device, requires_grad=True)
    torch.library.opcheck(operator._attention, (q, k, v, None, scale, False, True, 1, 9, impl))
    mask = torch.rand(9, 12, device=device) > 0.3
    torch.library.opcheck(operator._attention, (q, k, v, mask, None, False, False, 0, 0, impl))
    # heads inside of tokens, as diffusers passes them
    q, k, v = (torch.randn(1, 9, 2, 16, device=device).transpose(1, 2).requires_grad_() for _ in range(3))
    torch.library.opcheck(operator._attention, (q, k, v, None, None, True, False, 0, 0, impl))


def check_frames(impl: str, device: str) -> None:
    """One graph without breaks, compiled once for the first length and once for all others, for any N, T and scale."""

    def by_value(q, k, v, scale):
        return step(q, k, v, scale, impl)

    def by_policy(q, k, v, train_tokens):
        info = ea.CallInfo("layer", "self", q.shape[2], k.shape[2], q.shape[1], q.shape[3], train_tokens)
        return step(q, k, v, ea.scale.LogN()(info), impl)

    for function, arguments in ((by_value, (0.2, 0.25, -0.3, 0.1, 0.4)), (by_policy, (20, 21, 30, 33, 40))):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(function, backend=counter, fullgraph=True)
        frames = []
        for seqlen, argument in zip((24, 25, 32, 40, 63), arguments, strict=True):
            tensors = make_qkv(1, 2, seqlen, seqlen, 16, device=device, seed=seqlen)
            for ours, eager in zip(
                gradients(compiled, tensors, argument), gradients(function, tensors, argument), strict=True
            ):
                torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
            frames.append(counter.frame_count)
        assert frames == [1, 2, 2, 2, 2], f"{function.__name__}: {frames}"


def check_autocast(impl: str, device: str) -> None:
    """In an autocast region, a call computes in the dtype of the region, and statistics stay float32."""
    dtype = torch.float16
    q, k, v = make_qkv(1, 2, 20, 20, 16, device=device)
    with torch.autocast(device, dtype=dtype):
        inside = ea.attention(q, k, v, impl=impl, **OPTIONS)
        compiled = torch.compile(lambda *t: tuple(ea.attention(*t, impl=impl, **OPTIONS)), backend="aot_eager")(q, k, v)
    outside = ea.attention(*(t.to(dtype) for t in (q, k, v)), impl=impl, **OPTIONS)
    assert inside.out.dtype == dtype and inside.entropy.dtype == inside.map.dtype == torch.float32
    for a, b, c in zip(inside[:4], outside[:4], compiled[:4], strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def check_checkpoint(impl: str, device: str) -> None:
    """Non-reentrant checkpointing, eager and compiled."""
    tensors = make_qkv(1, 2, 20, 20, 16, device=device)
    plain = gradients(lambda q, k, v: step(q, k, v, 0.3, impl), tensors)

    def recomputed(q, k, v):
        return checkpoint(step, q, k, v, 0.3, impl, use_reentrant=False)

    for function in (recomputed, torch.compile(recomputed, backend="aot_eager")):
        for a, b in zip(plain, gradients(function, tensors), strict=True):
            torch.testing.assert_close(a, b)


def check_without_gradients(impl: str, device: str) -> None:
    q, k, v = make_qkv(1, 2, 20, 20, 16, device=device, requires_grad=True)
    expected = ea.attention(q, k, v, impl=impl, **OPTIONS)[:4]
    assert all(t.requires_grad for t in expected)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = ea.attention(q, k, v, impl=impl, **OPTIONS)[:4]
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b) and not a.requires_grad


def check_absent_and_partial_gradients(impl: str, device: str) -> None:
    """Only requested results are computed, and results that the loss does not use have no gradient."""
    q, k, v = make_qkv(1, 2, 12, 15, 16, device=device)
    q.requires_grad_()
    result = ea.attention(q, k, v, impl=impl, **OPTIONS)
    result.entropy.sum().backward()
    assert q.grad.isfinite().all() and q.grad.any() and k.grad is None and v.grad is None
    result = ea.attention(q, k, v, impl=impl, return_entropy=True)
    assert result.lse is None and result.map is None


def check_layouts(impl: str, device: str) -> None:
    """A compiled training step: each result of an operator has the strides of its fake result."""
    for name in ("sequence first", "heads expanded", "columns outside"):
        make = LAYOUTS[name]
        tensors = tuple(make().to(device) for _ in range(3))
        scale = torch.full((tensors[0].shape[1],), 0.3, device=device)
        backend = aot_autograd(fw_compiler=strict_strides, bw_compiler=strict_strides)
        compiled = torch.compile(step, backend=backend, fullgraph=True)
        torch._dynamo.reset()
        found, expected = (_with_strides(function, tensors, scale, impl) for function in (compiled, step))
        for ours, eager in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def check_operator_layouts(impl: str, device: str) -> None:
    """torch.library.opcheck of both operators, for every memory layout."""
    for name, make in LAYOUTS.items():
        if impl == "triton" and name not in UNLIKE:  # the interpreter is slow
            continue
        q, k, v = (make().to(device) for _ in range(3))
        mask, scale = torch.zeros(q.shape[2], k.shape[2], device=device), torch.ones((), device=device)
        forward = (q, k, v, mask, scale, False, True, 1, 4, impl)
        torch.library.opcheck(operator._attention, forward, test_utils="test_faketensor")
        results = operator._attention(*forward)
        grads = [torch.randn_like(t) for t in results]
        needs = [True, True, True, impl == "sdpa", True]
        backward = (q, k, v, mask, scale, *results[:3], *grads, False, 1, 4, impl, needs)
        torch.library.opcheck(operator._attention_backward, backward, test_utils="test_faketensor")


def _with_strides(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], *arguments) -> tuple[Tensor, ...]:
    """Gradients of tensors with their strides, which `detach` keeps."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(function(*leaves, *arguments), leaves)


def strict_strides(module: torch.fx.GraphModule, example_inputs: list) -> Callable:
    """Runs a graph, and compares the strides of our operators' results with those that the compiler assumed."""

    class Strict(torch.fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            if "entropy_attn" in str(node.target):
                for actual, assumed in zip(result, node.meta["val"], strict=True):
                    assert actual.stride() == assumed.stride(), f"{node}: {actual.stride()}, not {assumed.stride()}"
            return result

    return make_boxed_func(lambda *inputs: Strict(module).run(*inputs))
