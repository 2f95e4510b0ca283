"""Wrapping the call of a single module, undone without a trace.

The module's class is exchanged for a subclass of itself whose `__call__` runs a given function around the original, as
torch's `fully_shard` and parametrizations do. Compared with the alternatives: a pair of forward hooks cannot hold a
`with` block, so a KeyboardInterrupt would leave its context entered (torch runs "always called" hooks for `Exception`
only); a replaced `forward` attribute is taken away by the offloading hooks of accelerate, which rewrite it after every
pipeline call.

Copies and pickles of a wrapped module are of its original class and not wrapped.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

# around(module, call, args, kwargs) -> what the module's call returns; `call` is the original, bound to the module
Around = Callable[[nn.Module, Callable[..., Any], tuple, dict[str, Any]], Any]

_PREFIX = "_entropy_attn_"  # of attributes that copies of a module do not get
_SLOT = f"{_PREFIX}around"


def wrap_call(module: nn.Module, around: Around, base: type = object) -> None:
    """From now on `module(...)` is `around(module, call, args, kwargs)`. A module is wrapped once at most.

    base: a class whose attributes hide those of the module's class while the module is wrapped.
    """
    if wrapper_of(module) is not None:
        raise RuntimeError(f"{type(module).__name__} is already wrapped")
    module.__dict__[_SLOT] = around
    if not hasattr(
        type(module), "_unwrapped_class"
    ):  # else the wrapping class is still among its bases, see `unwrap_call`
        cls: Any = type(module)
        module.__class__ = _wrapped_class(cls, base)


def unwrap_call(module: nn.Module) -> None:
    """Undo `wrap_call`; does nothing to a module that is not wrapped."""
    module.__dict__.pop(_SLOT, None)
    # If another library has exchanged the class since, the wrapping class stays below that class and passes calls on.
    if "_unwrapped_class" in type(module).__dict__:
        module.__class__ = vars(type(module))["_unwrapped_class"]


def wrapper_of(module: nn.Module) -> Around | None:
    """The function that the module is wrapped with."""
    return module.__dict__.get(_SLOT)


@functools.cache
def _wrapped_class(cls: Any, base: type) -> type[nn.Module]:
    original = cls.__call__  # torch.compile knows it as this, not as an attribute of the class

    class Alike(type(cls)):  # type: ignore[misc]  # the metaclass of this class, which differs
        """`DiffusionPipeline.from_pipe` asks whether the type of a component is in a list of types."""

        def __eq__(self, other: object) -> bool:
            return other is self or other is self.__dict__.get("_unwrapped_class", self)

        def __hash__(self) -> int:
            return hash(self.__dict__.get("_unwrapped_class", id(self)))

    class Wrapped(*((cls,) if base is object else (base, cls)), metaclass=Alike):  # type: ignore[misc]
        _unwrapped_class = cls

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            # Not super(): whoever kept this method may call it after the class was exchanged back.
            around = self.__dict__.get(_SLOT)
            if around is None:
                return original(self, *args, **kwargs)
            return around(self, functools.partial(original, self), args, kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            _rebuild, _args, state, *rest = super().__reduce_ex__(protocol)
            state = {name: value for name, value in state.items() if not name.startswith(_PREFIX)}
            return (object.__new__, (cls,), state, *rest)

    # Model cards, `save_pretrained` and printed models go by the name of the class.
    Wrapped.__name__, Wrapped.__qualname__, Wrapped.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    Wrapped.__doc__ = cls.__doc__
    if not issubclass(cls, nn.Module):  # users ask pipelines which arguments they take
        vars(Wrapped.__call__)["__signature__"] = inspect.signature(original)
    return Wrapped
