"""Subclasses, views and transforms of tensors are served correctly or refused with a reason, never misread."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import entropy_attn as ea
from entropy_attn.ops import operator
from entropy_attn.ops.reference import attention_reference
from tests.support.interpreter import needs_interpreter
from tests.support.oracle import assert_matches_oracle, make_qkv

Q, K, V = make_qkv(1, 2, 6, 7, 16)
ASKED = [{"return_entropy": True}, {"return_lse": True}, {"map_keys": (0, 2)}]
EVERYTHING = {"return_lse": True, "return_entropy": True, "map_keys": (1, 4)}


class Named(Tensor):
    """A subclass that changes nothing."""


class Overriding(Tensor):
    """A subclass that overrides operations."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("impl", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("bias, diagonal", [(causal_upper_left, 0), (causal_lower_right, 1)])
@pytest.mark.parametrize("length", [6, 7])
def test_a_causal_bias_is_converted(impl, bias, diagonal, length):
    k, v = K[:, :, :length], V[:, :, :length]
    keep = torch.ones(6, length, dtype=torch.bool).tril(diagonal * (length - 6))
    made = bias(6, length)
    r = ea.attention(Q, k, v, attn_mask=made, **EVERYTHING, impl=impl)
    assert_matches_oracle(r, Q, k, v, attn_mask=keep, map_keys=(1, 4))
    theirs = F.scaled_dot_product_attention(Q, k, v, made)
    torch.testing.assert_close(ea.attention(Q, k, v, attn_mask=made, impl=impl).out, theirs)
    assert ea.unsupported_reasons(Q, k, v, attn_mask=made, **EVERYTHING, impl=impl) == []


def test_a_causal_bias_in_a_compiled_call():
    bias = causal_lower_right(6, 7)
    compiled = torch.compile(lambda q: ea.attention(q, K, V, attn_mask=bias, return_entropy=True), backend="aot_eager")
    torch.testing.assert_close(compiled(Q), ea.attention(Q, K, V, attn_mask=bias, return_entropy=True))


def test_a_causal_bias_of_other_lengths_or_with_is_causal_is_refused():
    for call in (ea.attention, ea.unsupported_reasons):
        with pytest.raises(ValueError, match=r"a CausalBias for \(6, 7\) queries and keys, got one for \(4, 4\)"):
            call(Q, K, V, attn_mask=causal_upper_left(4, 4))
        with pytest.raises(ValueError, match="expected None with is_causal=True, got a CausalBias"):
            call(Q, K, V, attn_mask=causal_upper_left(6, 7), is_causal=True)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("make", [lambda t: t.as_subclass(Named), torch.nn.Parameter], ids=["named", "parameter"])
def test_a_subclass_that_changes_nothing_is_served(make, impl):
    for options in ASKED:
        expected = ea.attention(Q, K, V, attn_mask=torch.ones(6, 7), **options)
        found = ea.attention(make(Q), make(K), make(V), attn_mask=make(torch.ones(6, 7)), **options, impl=impl)
        for a, b in zip(found, expected, strict=True):
            assert (a is None and b is None) or type(a) is Tensor
            torch.testing.assert_close(a, b)


def refuses(name: str, *tensors: Tensor, impl: str, attn_mask: Tensor | None = None, plain: bool = False) -> None:
    """`Unsupported` names the kind of tensor and a remedy; with all statistics, and with `plain` also without any."""
    for options in ASKED + [{}] * plain:
        with pytest.raises(ea.Unsupported, match=name) as caught:
            ea.attention(*tensors, attn_mask=attn_mask, **options, impl=impl)
        assert caught.value.impl in (impl, "sdpa")


NESTED = torch.nested.nested_tensor([torch.randn(n, 2, 16) for n in (3, 5)], layout=torch.jagged).transpose(1, 2)
STRIDED = torch.nested.nested_tensor([torch.randn(2, n, 16) for n in (3, 5)])
MASKED = torch.masked.masked_tensor(torch.ones(6, 7), torch.ones(6, 7) > 0)


@pytest.mark.parametrize("impl", ["auto", "sdpa", "triton", "reference"])
def test_tensors_that_no_kernel_can_read_are_refused(impl):
    torchs = impl in ("auto", "sdpa")
    for nested in (NESTED, STRIDED):
        refuses("query is a nested tensor", nested, nested, nested, impl=impl, plain=not torchs)
    refuses("MaskedTensor, a subclass that changes operations", Q, K, V, attn_mask=MASKED, impl=impl, plain=True)
    refuses("query is a .*Overriding, a subclass", Q.as_subclass(Overriding), K, V, impl=impl, plain=not torchs)
    assert ea.unsupported_reasons(NESTED, NESTED, NESTED, return_entropy=True, impl=impl)


def test_torch_serves_the_kinds_that_it_supports():
    overriding = Q.as_subclass(Overriding)
    for ours, theirs in (
        (ea.attention(*[NESTED] * 3).out.values(), F.scaled_dot_product_attention(*[NESTED] * 3).values()),
        (ea.attention(overriding, K, V).out, F.scaled_dot_product_attention(overriding, K, V)),
        (torch.vmap(lambda q: ea.attention(q, K, V).out)(Q[None]), ea.attention(Q, K, V).out[None]),
    ):  # fmt: skip
        assert type(ours) is type(theirs) and torch.equal(ours, theirs)


def by_dual(function, tensor: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(tensor, torch.ones_like(tensor)))).tangent


TRANSFORMS = {
    "inside torch.vmap: put that dimension into the batch": lambda f, t: torch.vmap(f)(torch.stack([t, t + 1])),
    "inside torch.func.grad: use torch.autograd.grad": lambda f, t: torch.func.grad(lambda x: f(x).sum())(t),
    "inside torch.func.jvp": lambda f, t: torch.func.jvp(f, (t,), (t,)),
    "inside torch.func.functionalize": lambda f, t: torch.func.functionalize(f)(t),
    "a forward-mode gradient": by_dual,
}
ARGUMENTS = {
    "query": lambda t, **o: ea.attention(t, K, V, **o),
    "attn_mask": lambda t, **o: ea.attention(Q, K, V, attn_mask=t[0, 0, :, :7], **o),
    "scale": lambda t, **o: ea.attention(Q, K, V, scale=t.mean(), **o),
}


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_only_the_reference_supports_functorch_transforms(kind, argument, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def call(t, **options):
        return [each for each in ARGUMENTS[argument](t, **options) if each is not None][-1]

    for impl in ("triton", "sdpa", "auto"):
        for options in ASKED + [{}] * (impl == "triton"):
            with pytest.raises(ea.Unsupported, match=f'{argument} (is|has) {kind}.*or use impl="reference"'):
                TRANSFORMS[kind](lambda t, o=options, i=impl: call(t, **o, impl=i), Q)
    TRANSFORMS[kind](lambda t: call(t, return_entropy=True, impl="reference"), Q)


def test_a_plain_tensor_inside_a_transform_is_served():
    def function(x):
        return x * ea.attention(Q, K, V, return_entropy=True).entropy

    expected = function(torch.ones(3)[:, None, None, None])
    torch.testing.assert_close(torch.vmap(function)(torch.ones(3)), expected)


def test_the_operator_has_no_rule_for_vmap():
    def call(q):
        return operator._attention(q, K, V, None, None, False, True, 0, 0, "sdpa")[0]

    with pytest.raises(ea.Unsupported, match=r"torch\.vmap: put that dimension into the batch"):
        torch.vmap(call)(Q[None])


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_tracers_see_the_call(impl):
    """A trace that was made with one input and scale is correct for others."""

    def call(q, scale):
        return ea.attention(q, K, V, scale=scale, return_entropy=True, impl=impl).entropy

    given, other = (Q, torch.tensor(0.3)), (Q + 1, torch.tensor(0.5))
    for trace in (lambda: torch.jit.trace(call, given, check_trace=False), lambda: make_fx(call)(*given)):
        torch.testing.assert_close(trace()(*other), call(*other))


def test_gradients_of_a_mask_beside_a_tensor_scale():
    mask, scale = torch.randn(6, 7, requires_grad=True), torch.tensor([0.2, -0.4], requires_grad=True)
    grads = []
    for r in (
        ea.attention(Q, K, V, attn_mask=mask, scale=scale, return_entropy=True),
        attention_reference(Q, K, V, attn_mask=mask, scale=scale)[:3],
    ):
        grads.append(torch.autograd.grad(r[0].float().square().sum() + r[2].float().sum(), (mask, scale)))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["sdpa", "reference", pytest.param("triton", marks=needs_interpreter)])
@pytest.mark.parametrize("argument", ["query", "key", "value", "attn_mask", "scale"])
def test_a_negative_view_is_read_with_its_sign(argument, impl):
    """The imaginary part of a conjugate is a view of memory with the opposite sign."""
    call = {"query": Q, "key": K, "value": V, "attn_mask": torch.randn(6, 7), "scale": torch.tensor([0.3, -0.2])}
    negative = torch.complex(call[argument], -call[argument]).conj().imag
    assert negative.is_neg()
    for options in (EVERYTHING, {}):
        found = ea.attention(**{**call, argument: negative}, **options, impl=impl)
        expected = ea.attention(**call, **options, impl=impl)
        for a, b in zip(found, expected, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("impl", ["auto", "sdpa", "reference", "triton"])
def test_a_sparse_tensor_is_refused_with_the_remedy(impl):
    for layout in ("to_sparse", "to_sparse_csr"):
        mask = getattr(torch.eye(6, 7), layout)()
        reason = r"attn_mask has the layout torch.sparse_\w+: pass attn_mask.to_dense\(\)"
        refuses(reason, Q, K, V, attn_mask=mask, impl=impl)
    refuses(r"query has the layout torch.sparse_coo", Q.to_sparse(), K, V, impl=impl)


@pytest.mark.parametrize("impl", ["auto", "sdpa", "reference", "triton"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 10**400], ids=["nan", "inf", "large"])
def test_a_scale_that_is_not_finite_is_refused_also_as_a_tensor(bad, impl):
    """torch's attention would return zeros."""
    scales = [bad]
    if isinstance(bad, float):
        scales += [torch.tensor(bad), torch.tensor(bad, requires_grad=True), torch.tensor([1.0, bad])]
    for scale in scales:
        for options in ({}, {"return_entropy": True}):
            with pytest.raises(ValueError, match=r"scale: expected (a )?finite"):
                ea.attention(Q, K, V, scale=scale, **options, impl=impl)
