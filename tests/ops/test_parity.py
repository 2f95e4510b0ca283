"""The drop-in against torch's scaled_dot_product_attention: the same result, or the same kind of error.

Each case is a function that takes the attention to call. The arguments come from torch's documentation and tests
(pytorch/test/test_transformers.py, test_nestedtensor.py; torch/testing/_internal/common_methods_invocations.py).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import entropy_attn as ea

TORCHS = F.scaled_dot_product_attention
CASES: dict[str, Callable[[Callable[..., Tensor]], Any]] = {}


def case(name: str, call: Callable) -> None:
    assert name not in CASES, name
    CASES[name] = call


def tensor(*shape: int, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))
    return made.to(dtype, **options) if dtype.is_floating_point or dtype.is_complex else (made * 3).to(dtype, **options)


def qkv(*, q=(2, 4, 5, 8), k=(2, 4, 7, 8), v=(2, 4, 7, 8), **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tensor(*q, **options), tensor(*k, **options), tensor(*v, **options) * 2


def plain(name: str, tensors: dict[str, Any] | None = None, **options: Any) -> None:
    """Add a case with these shapes and arguments."""
    case(name, lambda sdpa: sdpa(*qkv(**(tensors or {})), **options))


# ranks 2 to 5, broadcast batches and heads, lengths and head dims of 0 and 1, another head dim of the values
SHAPES = {
    "2-D": {"q": (5, 8), "k": (7, 8), "v": (7, 8)},
    "2-D values": {"q": (5, 8), "k": (7, 8), "v": (7, 6)},
    "3-D": {"q": (3, 5, 8), "k": (3, 7, 8), "v": (3, 7, 8)},
    "4-D": {},
    "4-D values": {"v": (2, 4, 7, 3)},
    "5-D": {"q": (2, 2, 3, 5, 8), "k": (2, 2, 3, 7, 8), "v": (2, 2, 3, 7, 8)},
    "batch of keys": {"k": (1, 4, 7, 8), "v": (1, 4, 7, 8)},
    "batch of values": {"v": (1, 4, 7, 8)},
    "batch of query": {"q": (1, 4, 5, 8)},
    "one key head": {"k": (2, 1, 7, 8), "v": (2, 1, 7, 8)},
    "one query head": {"q": (2, 1, 5, 8)},
    "ranks differ": {"q": (4, 5, 8)},
    "head dim 0": {"q": (2, 4, 5, 0), "k": (2, 4, 7, 0)},
    "values of width 0": {"v": (2, 4, 7, 0)},
    "head dim 1": {"q": (2, 4, 5, 1), "k": (2, 4, 7, 1)},
    "no queries": {"q": (2, 4, 0, 8)},
    "no keys": {"k": (2, 4, 0, 8), "v": (2, 4, 0, 8)},
    "no batch": {"q": (0, 4, 5, 8), "k": (0, 4, 7, 8), "v": (0, 4, 7, 8)},
    "no heads": {"q": (2, 0, 5, 8), "k": (2, 0, 7, 8), "v": (2, 0, 7, 8)},
    "one token": {"q": (2, 4, 1, 8), "k": (2, 4, 1, 8), "v": (2, 4, 1, 8)},
    "wide": {"q": (1, 1, 3, 300), "k": (1, 1, 70, 300), "v": (1, 1, 70, 300)},
}
for (name, shapes), options in itertools.product(SHAPES.items(), ({}, {"is_causal": True}, {"scale": 0.2})):
    plain(f"{name} {options or ''}".strip(), shapes, **options)

# refused shapes, ranks, devices and dtypes
for name, shapes in {
    "1-D": {"q": (8,), "k": (8,), "v": (8,)},
    "widths differ": {"k": (2, 4, 7, 6)},
    "lengths differ": {"v": (2, 4, 6, 8)},
    "batches differ": {"k": (3, 4, 7, 8)},
    "heads differ": {"k": (2, 3, 7, 8), "v": (2, 3, 7, 8)},
    "key and value heads differ": {"v": (2, 2, 7, 8)},
}.items():
    plain(f"wrong: {name}", shapes)
for i, name in enumerate(("query", "key", "value")):
    for what, change in {
        "half": lambda t: t.half(),
        "on meta": lambda t: t.to("meta"),
        "None": lambda t: None,
        "list": lambda t: t.tolist(),
    }.items():
        case(
            f"wrong: {name} {what}",
            lambda sdpa, i=i, change=change: sdpa(*(change(t) if j == i else t for j, t in enumerate(qkv()))),
        )

# masks of every rank and dtype
for shape in ((), (7,), (1, 7), (5, 1), (5, 7), (1, 5, 7), (4, 5, 7), (1, 1, 5, 7), (2, 1, 1, 7), (2, 4, 5, 7),
              (1, 2, 4, 5, 7), (3, 2, 4, 5, 7), (2, 8, 5, 7), (5, 6), (4, 7), (0, 7)):  # fmt: skip
    case(f"mask bool {shape}", lambda sdpa, shape=shape: sdpa(*qkv(), attn_mask=tensor(*shape) > 0))
    case(f"mask added {shape}", lambda sdpa, shape=shape: sdpa(*qkv(), attn_mask=tensor(*shape)))
for shape in ((5, 7), (3, 5, 7), (1, 3, 5, 7)):
    case(
        f"mask {shape} of 3-D",
        lambda sdpa, shape=shape: sdpa(*qkv(q=(3, 5, 8), k=(3, 7, 8), v=(3, 7, 8)), tensor(*shape)),
    )
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
for dtype, of_mask in itertools.product(FLOATS, (*FLOATS, torch.bool, torch.int64)):
    case(
        f"{dtype} with a mask of {of_mask}",
        lambda sdpa, dtype=dtype, of_mask=of_mask: sdpa(*qkv(dtype=dtype), tensor(5, 7, dtype=of_mask)),
    )
for value in (torch.finfo(torch.float32).min, -1e30, -7e4, 1e5, -torch.inf, torch.nan):
    case(f"mask of {value}", lambda sdpa, value=value: sdpa(*qkv(), torch.full((5, 7), value)))
    case(
        f"mask with {value}", lambda sdpa, value=value: sdpa(*qkv(), tensor(5, 7).index_fill(1, torch.tensor(2), value))
    )
case("mask of no key", lambda sdpa: sdpa(*qkv(), torch.zeros(5, 7, dtype=torch.bool)))
case("mask expanded", lambda sdpa: sdpa(*qkv(), (tensor(1, 1, 1, 7) > 0).expand(2, 4, 5, 7)))
case("mask strided", lambda sdpa: sdpa(*qkv(), (tensor(7, 5) > 0).mT))
case("mask is None", lambda sdpa: sdpa(*qkv(), None))
case("mask is a list", lambda sdpa: sdpa(*qkv(), [[True]]))
case("mask and causal", lambda sdpa: sdpa(*qkv(), tensor(5, 7), is_causal=True))

# causal biases, which are a subclass of Tensor
for (name, bias), lengths in itertools.product(
    {"upper left": causal_upper_left, "lower right": causal_lower_right}.items(), ((5, 7), (7, 7), (5, 5), (7, 5))
):
    q, k = (2, 4, lengths[0], 8), (2, 4, lengths[1], 8)
    case(
        f"{name} of {lengths}",
        lambda sdpa, q=q, k=k, bias=bias, lengths=lengths: sdpa(*qkv(q=q, k=k, v=k), bias(*lengths)),
    )
case("bias as a keyword", lambda sdpa: sdpa(*qkv(), attn_mask=causal_lower_right(5, 7), scale=0.3, enable_gqa=True))
case("bias of other lengths", lambda sdpa: sdpa(*qkv(), causal_upper_left(4, 4)))
case("bias and causal", lambda sdpa: sdpa(*qkv(), causal_upper_left(5, 7), is_causal=True))

# grouped heads
for heads in ((4, 2, 2), (4, 1, 1), (4, 2, 4), (4, 4, 2), (4, 1, 2), (6, 3, 2), (4, 3, 3), (2, 4, 4), (4, 0, 0)):
    shapes = {"q": (2, heads[0], 5, 8), "k": (2, heads[1], 7, 8), "v": (2, heads[2], 7, 8)}
    plain(f"grouped {heads}", shapes, enable_gqa=True)
    plain(f"grouped {heads} causal", shapes, enable_gqa=True, is_causal=True)
plain("grouped 3-D", SHAPES["3-D"], enable_gqa=True)

# scales, flags and dropout
for scale in (None, 1, 2.5, 1e-30, 0.0, 0, -0.3, -2, True, torch.tensor(0.3), float("inf"), "0.1", [0.1], 1j):
    plain(f"scale {scale!r}", scale=scale)
for name, value in (("is_causal", 1), ("is_causal", None), ("enable_gqa", "yes"), ("dropout_p", "0.1"),
                    ("dropout_p", -0.1), ("dropout_p", 1.5), ("dropout_p", 1.0), ("dropout_p", 0)):  # fmt: skip
    plain(f"{name} {value!r}", **{name: value})
for options in ({}, {"is_causal": True}, {"scale": 0.2}, {"attn_mask": torch.ones(5, 7, dtype=torch.bool)}):
    plain(f"dropout {', '.join(options)}", dropout_p=0.5, **options)
case("an unknown keyword", lambda sdpa: sdpa(*qkv(), softmax_scale=0.1))
case("too few arguments", lambda sdpa: sdpa(tensor(2, 4, 5, 8)))
case("by position", lambda sdpa: sdpa(*qkv(), tensor(5, 7), 0.0, False))
case("keywords", lambda sdpa: sdpa(**dict(zip(("query", "key", "value"), qkv(), strict=True))))

# dtypes, meta tensors and autocast
for dtype in (torch.int64, torch.int32, torch.bool, torch.uint8, torch.complex64, torch.complex128, torch.float8_e5m2):
    plain(f"dtype {dtype}", {"dtype": dtype})
for dtype in FLOATS:
    plain(f"dtype {dtype}", {"dtype": dtype})
    plain(f"dtype {dtype} causal", {"dtype": dtype}, is_causal=True)
plain("meta", {"device": "meta"})
case("meta with a mask", lambda sdpa: sdpa(*qkv(device="meta"), torch.ones(5, 7, device="meta")))


def in_autocast(sdpa, dtype, **options):
    with torch.autocast("cpu", dtype):
        return sdpa(*qkv(), **options)


for dtype in (torch.bfloat16, torch.float16):
    case(f"autocast {dtype}", lambda sdpa, dtype=dtype: in_autocast(sdpa, dtype))
    case(f"autocast {dtype} with a mask", lambda sdpa, dtype=dtype: in_autocast(sdpa, dtype, attn_mask=tensor(5, 7)))


def gradients(sdpa, of="qkv", mask=None, **options):
    leaves = [t.requires_grad_(name in of) for name, t in zip("qkv", qkv(), strict=True)]
    if mask is not None:
        leaves.append(mask.requires_grad_())
    out = sdpa(*leaves[:3], mask, **options)
    return out, *torch.autograd.grad(out.square().sum(), [t for t in leaves if t.requires_grad])


for of in ("qkv", "q", "kv"):
    case(f"gradients of {of}", lambda sdpa, of=of: gradients(sdpa, of))
    case(f"gradients of {of} causal", lambda sdpa, of=of: gradients(sdpa, of, is_causal=True))
case("gradient of the mask", lambda sdpa: gradients(sdpa, mask=tensor(5, 7)))
case("no gradients", lambda sdpa: torch.no_grad()(gradients)(sdpa))


def jagged(*shape: int) -> Tensor:
    parts = [tensor(n, *shape) for n in (3, 5)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)


case("nested jagged", lambda sdpa: sdpa(*[jagged(4, 8)] * 3).values())
case("nested jagged causal", lambda sdpa: sdpa(*[jagged(4, 8)] * 3, is_causal=True).values())
case("nested jagged with a mask", lambda sdpa: sdpa(*[jagged(4, 8)] * 3, torch.ones(5, 5)).values())
case(
    "nested strided",
    lambda sdpa: sdpa(*[torch.nested.nested_tensor([tensor(4, n, 8) for n in (3, 5)])] * 3).to_padded_tensor(0.0),
)
case("nested and dense", lambda sdpa: sdpa(jagged(4, 8), *qkv()[1:]))
case("masked tensor", lambda sdpa: sdpa(*qkv(), torch.masked.masked_tensor(tensor(5, 7), tensor(5, 7) > 0)))


class Named(Tensor):
    """A subclass that changes nothing."""


class Logged(Tensor):
    """A subclass that overrides torch's functions."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return "asked"
        return super().__torch_function__(func, types, args, kwargs or {})


case("subclass", lambda sdpa: sdpa(*(t.as_subclass(Named) for t in qkv())))
case("subclass of the mask", lambda sdpa: sdpa(*qkv(), tensor(5, 7).as_subclass(Named)))
case("subclass that overrides", lambda sdpa: sdpa(*(t.as_subclass(Logged) for t in qkv())))
case("parameter", lambda sdpa: sdpa(*map(torch.nn.Parameter, qkv())))
case("vmap", lambda sdpa: torch.vmap(sdpa)(*qkv()))
case("vmap over masks", lambda sdpa: torch.vmap(lambda mask: sdpa(*qkv(), mask))(tensor(3, 5, 7)))
case("vmap of a grad", lambda sdpa: torch.vmap(torch.func.grad(lambda *t: sdpa(*t).sum()))(*qkv()))
case("func.grad", lambda sdpa: torch.func.grad(lambda *t: sdpa(*t).sum())(*qkv()))
case("func.jvp", lambda sdpa: torch.func.jvp(sdpa, qkv(), qkv()))
case("functionalize", lambda sdpa: torch.func.functionalize(lambda *t: sdpa(*t))(*qkv()))
case("jit.trace", lambda sdpa: torch.jit.trace(lambda *t: sdpa(*t), qkv())(*(t + 1 for t in qkv())))
case("compile", lambda sdpa: torch.compile(lambda *t: sdpa(*t), backend="eager", fullgraph=True)(*qkv()))


def outcome(call: Callable, sdpa: Callable) -> Any:
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(sdpa)
        except Exception as error:
            return error


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs), f"{ours!r}, torch: {theirs!r}"
    if isinstance(theirs, tuple):
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)
    elif isinstance(theirs, Tensor):
        assert ours.requires_grad == theirs.requires_grad and ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, equal_nan=True)
    elif not isinstance(theirs, Exception):
        assert ours == theirs


@pytest.mark.parametrize("name", CASES)
def test_the_drop_in_equals_torchs_attention(name):
    assert_same(outcome(CASES[name], ea.scaled_dot_product_attention), outcome(CASES[name], TORCHS))


def test_the_table_has_all_kinds_of_cases():
    served = [name for name in CASES if not isinstance(outcome(CASES[name], TORCHS), Exception)]
    assert len(CASES) >= 150 and len(served) >= 150 and len(CASES) - len(served) >= 40


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_causal_calls_with_scales_for_which_torch_returns_nan(scale):
    q, k, v = qkv()
    keep = torch.ones(5, 7, dtype=torch.bool).tril()
    expected = torch.where(keep, (q @ k.mT) * scale, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(ea.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale), expected)
