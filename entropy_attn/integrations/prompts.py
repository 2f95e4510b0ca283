"""Hearing which prompts a pipeline is given, undone without a trace."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

from diffusers import DiffusionPipeline

_METHOD = "encode_prompt"


# The prompts, or None where embeddings are given; whether they are for classifier-free guidance, or None if unsaid
Tell = Callable[[list[str] | None, bool | None], None]


def listen(pipe: DiffusionPipeline, tell: Tell) -> None:
    """From now on `tell(prompts, guided)` is called before `pipe` encodes its prompts."""
    if hasattr(type(pipe), _METHOD):
        setattr(pipe, _METHOD, _Listener(pipe, tell))


def unlisten(pipe: DiffusionPipeline) -> None:
    """Undo `listen`; does nothing to a pipeline that is not listened to."""
    listener = pipe.__dict__.get(_METHOD)
    if isinstance(listener, _Listener):
        delattr(pipe, _METHOD)
        if listener.previous is not None:
            setattr(pipe, _METHOD, listener.previous)


class _Listener:
    """Stands in for one pipeline's `encode_prompt`."""

    def __init__(self, pipe: DiffusionPipeline, tell: Tell):
        self.pipe = weakref.ref(pipe)  # the pipeline holds this object
        self.tell = tell
        self.previous = pipe.__dict__.get(_METHOD)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pipe = self.pipe()
        own = MethodType(getattr(type(pipe), _METHOD), pipe)
        given = inspect.signature(own).bind(*args, **kwargs)  # `previous` may be a listener too
        given.apply_defaults()
        arguments = given.arguments
        self.tell(_prompts(pipe, arguments.get("prompt")), arguments.get("do_classifier_free_guidance"))
        return (self.previous or own)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # Copies of the pipeline are not listened to; the copy is known by now, for this is one of its attributes.
        copied = memo[id(self.pipe())]
        return MethodType(getattr(type(copied), _METHOD), copied)


def _prompts(pipe: DiffusionPipeline, prompt: str | list[str] | None) -> list[str] | None:
    """As they are tokenised: a textual inversion of several vectors is several words then."""
    if prompt is None:
        return None
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    expand = getattr(pipe, "maybe_convert_prompt", None)
    tokenizer = tokenizer_of(pipe)
    return expand(prompts, tokenizer) if expand is not None and tokenizer is not None else prompts


def tokenizer_of(pipe: DiffusionPipeline | None) -> Any | None:
    """The pipeline's tokenizer. The two of SDXL give the same tokens; its refiner has the second alone."""
    return getattr(pipe, "tokenizer", None) or getattr(pipe, "tokenizer_2", None)
