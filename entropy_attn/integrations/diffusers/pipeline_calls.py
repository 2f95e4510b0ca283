"""Following the calls of one pipeline: is it running in this thread, and which arguments was it given?

A denoiser is called by whatever holds it, and nothing that it receives says by whom: pipelines share their components
(`from_pipe`), and people call denoisers by hand. So the pipeline that is routed is wrapped. A denoiser call inside of
one of its calls is part of that call; any other one comes from outside.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline

from entropy_attn.integrations.diffusers.module_calls import Around, unwrap_call, wrap_call, wrapper_of

# What a text is called that is none of the pipeline's arguments, such as one that the pipeline made of its prompt
UNNAMED = "a text that is none of its arguments"

# Methods of diffusers' pipelines that call the denoiser, besides __call__
_METHODS = ("generate_mask", "invert")

_POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
_PASSED_ON = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


class PipelineRun:
    """One call of a pipeline that is being followed.

    arguments: the given ones by name, and the defaults of the others.
    """

    def __init__(self, pipe: DiffusionPipeline, method: str, args: Sequence[Any], kwargs: dict[str, Any]):
        self.pipe = pipe
        self.key = object()  # identifies this call, without keeping its arguments alive
        self.arguments = named_arguments(type(pipe), method, args, kwargs)

    def names_of(self, text: object) -> tuple[str, ...]:
        """The arguments of the call that are this text.

        Flux encodes its negative prompt in the same way as its prompt, and CycleDiffusion a source prompt: the names of
        the arguments tell them apart.
        """
        found = tuple(name for name, value in self.arguments.items() if _same_text(value, text))
        if set(found) - {"prompt"} or _texts(text) != ("",):
            return found or (UNNAMED,)
        # The empty text is what a pipeline encodes for a prompt that it was not given.
        given = {name for name, value in self.arguments.items() if value is not None}
        missing: tuple[str, ...] = () if given & {"prompt", "prompt_embeds"} else ("prompt",)
        missing += () if given & {"negative_prompt", "negative_prompt_embeds"} else ("negative_prompt",)
        return found + missing or (UNNAMED,)


_threads = threading.local()


def running(pipe: DiffusionPipeline | None) -> PipelineRun | None:
    """The innermost call of this pipeline in this thread, if the pipeline is followed."""
    runs = getattr(_threads, "runs", ())
    return next((run for run in reversed(runs) if run.pipe is pipe), None)


@contextmanager
def run_of(
    pipe: DiffusionPipeline, args: Sequence[Any], kwargs: dict[str, Any], method: str = "__call__"
) -> Iterator[PipelineRun]:
    """The pipeline runs in this thread, with these arguments, while the block lasts."""
    run = PipelineRun(pipe, method, args, kwargs)
    if not hasattr(_threads, "runs"):
        _threads.runs = []
    _threads.runs.append(run)
    try:
        yield run
    finally:
        _threads.runs.pop()


def follow(pipe: DiffusionPipeline) -> None:
    """From now on `running(pipe)` knows of its calls; until `unfollow` was called as often."""
    add_around(pipe, _run)


def unfollow(pipe: DiffusionPipeline) -> None:
    remove_around(pipe, _run)


def _run(pipe: Any, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    with run_of(pipe, args, kwargs):
        return call(*args, **kwargs)


class _Arounds:
    """Functions around the call of one pipeline, the latest outermost."""

    def __init__(self) -> None:
        self.functions: list[Around] = []

    def __call__(self, pipe: Any, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        for function in self.functions:
            call = _around(function, pipe, call)
        return call(*args, **kwargs)


def _around(function: Around, pipe: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(pipe, call, args, kwargs)


def add_around(pipe: DiffusionPipeline, function: Around) -> None:
    """From now on `pipe(...)` is `function(pipe, call, args, kwargs)`."""
    arounds = _arounds(pipe)
    if arounds is None:
        arounds = _Arounds()
        cls: Any = type(pipe)
        wrap_call(pipe, arounds, _followed_methods(cls))
    arounds.functions.append(function)


def remove_around(pipe: DiffusionPipeline, function: Around) -> None:
    """Undo `add_around`; without a trace, once nothing else is around the pipeline's call."""
    arounds = _arounds(pipe)
    if arounds is None:
        raise ValueError(f"{type(pipe).__name__}: nothing is around its call")
    arounds.functions.remove(function)
    if not arounds.functions:
        unwrap_call(pipe)


def arounds_of(pipe: DiffusionPipeline) -> tuple[Around, ...]:
    """The functions around the pipeline's call."""
    arounds = _arounds(pipe)
    return () if arounds is None else tuple(arounds.functions)


def _arounds(pipe: Any) -> _Arounds | None:
    found: Any = wrapper_of(pipe)
    return found


@functools.cache
def _followed_methods(cls: Any) -> type:
    """A base class whose methods are those of `cls` that call the denoiser, followed."""
    methods = {name: _followed(name, getattr(cls, name)) for name in _METHODS if hasattr(cls, name)}
    return type("FollowedMethods", (), methods) if methods else object


def _followed(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with run_of(self, args, kwargs, name):
            return original(self, *args, **kwargs)

    return method


def named_arguments(cls: type, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with the defaults of the others."""
    found = call_parameters(cls, method)
    defaults = {name: each.default for name, each in found.items() if each.default is not each.empty}
    positional = [name for name, each in found.items() if each.kind in _POSITIONAL]
    return {**defaults, **dict(zip(positional, args, strict=False)), **kwargs}


def call_parameters(cls: type, method: str = "__call__") -> dict[str, inspect.Parameter]:
    """The parameters of a pipeline's method, without `self`. Classes that pass all of them on to a base are skipped."""
    found: dict[str, inspect.Parameter] = {}
    for kind in cls.__mro__:
        if method in vars(kind):
            found = dict(list(inspect.signature(vars(kind)[method]).parameters.items())[1:])
            kinds = {each.kind for each in found.values()}
            if kinds & _POSITIONAL or not kinds & _PASSED_ON:
                break
    return found


def _same_text(one: object, other: object) -> bool:
    if one is None or other is None:
        return False
    texts = _texts(one)
    return one is other or (texts is not None and texts == _texts(other))


def _texts(value: object) -> tuple[str, ...] | None:
    """One text, or several; a text that is repeated is one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(each, str) for each in value):
        return None
    return (value[0],) if len(set(value)) == 1 else tuple(value)
