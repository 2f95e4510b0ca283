"""Wrapping the call of a module while other libraries change the module."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from entropy_attn.integrations.diffusers.module_calls import unwrap_call, wrap_call, wrapper_of


def double(module, call, args, kwargs):
    return 2 * call(*args, **kwargs)


X = torch.ones(1, 3)


def test_wrap_and_unwrap():
    module, other = nn.Linear(3, 3), nn.Linear(3, 3)
    kept, expected = dict(module.__dict__), module(X)
    wrap_call(module, double)
    assert wrapper_of(module) is double and wrapper_of(other) is None
    assert torch.equal(module(X), 2 * expected)
    assert isinstance(module, nn.Linear) and repr(module) == repr(nn.Linear(3, 3)) and type(other) is nn.Linear
    with pytest.raises(RuntimeError, match="already"):
        wrap_call(module, double)
    unwrap_call(module)
    unwrap_call(module)
    assert type(module) is nn.Linear and module.__dict__ == kept
    assert torch.equal(module(X), expected)


def test_copies_and_pickles_are_plain():
    module = nn.Linear(3, 3)
    wrap_call(module, lambda module, call, args, kwargs: None)
    for twin in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module, 2))):
        assert type(twin) is nn.Linear and wrapper_of(twin) is None
        assert twin(X).shape == (1, 3)
    assert module(X) is None


def test_a_forward_that_is_replaced_while_wrapped_stays_wrapped():
    """accelerate's offloading hooks replace `forward` after every call of a pipeline."""
    module = nn.Linear(3, 3)
    expected = module(X)
    wrap_call(module, double)
    module.forward = lambda x: nn.Linear.forward(module, x) + 1
    assert torch.equal(module(X), 2 * (expected + 1))
    del module.forward
    assert torch.equal(module(X), 2 * expected)
    unwrap_call(module)
    assert torch.equal(module(X), expected)


def test_forward_hooks_run_inside():
    module = nn.Linear(3, 3)
    expected = module(X)
    wrap_call(module, double)
    hook = module.register_forward_hook(lambda module, args, output: output + 1)
    assert torch.equal(module(X), 2 * (expected + 1))
    hook.remove()
    unwrap_call(module)


def test_a_class_that_is_replaced_while_wrapped():
    module = nn.Linear(3, 3)
    expected = module(X)
    wrap_call(module, double)
    module.__class__ = theirs = type("Theirs", (type(module),), {})
    assert torch.equal(module(X), 2 * expected)
    unwrap_call(module)
    assert type(module) is theirs and torch.equal(module(X), expected)
    wrap_call(module, double)
    assert torch.equal(module(X), 2 * expected)
    unwrap_call(module)
    assert torch.equal(module(X), expected)


def test_a_kept_reference_to_the_call():
    """torch.compile(module) keeps one."""
    module = nn.Linear(3, 3)
    expected = module(X)
    wrap_call(module, double)
    call = module.__call__
    assert torch.equal(call(X), 2 * expected)
    unwrap_call(module)
    assert torch.equal(call(X), expected)


def test_the_wrapped_class_counts_as_the_original():
    """Pipelines compare the type of a component with the types that they accept."""
    module = nn.Linear(3, 3)
    wrap_call(module, double)
    assert type(module) is not nn.Linear
    assert type(module) in [nn.Linear] and type(module) in {nn.Linear} and nn.Linear in (type(module),)
    assert type(module) not in [nn.Conv2d] and type(module) not in {nn.Conv2d}
    other = type("Other", (type(module),), {})
    assert other not in [nn.Linear] and len({other, type(module), nn.Linear}) == 2
    unwrap_call(module)
    assert type(module) is nn.Linear
