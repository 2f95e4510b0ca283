"""Hearing which texts a pipeline encodes, undone without a trace."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

from diffusers import DiffusionPipeline

from entropy_attn.integrations.diffusers.callers import names_given
from entropy_attn.integrations.diffusers.row_texts import Encoded, encoded_states
from entropy_attn.prompts import TextPart
from entropy_attn.recorders.base import Prompt

_METHOD = "encode_prompt"
_TOKENIZERS = ("tokenizer",)

Tell = Callable[[Encoded], None]


def listen(pipe: DiffusionPipeline, tell: Tell, tokenizers: tuple[str, ...] = _TOKENIZERS) -> None:
    """From now on `tell(encoded)` is called whenever `pipe` has encoded a prompt, a negative one, or another text."""
    if hasattr(type(pipe), _METHOD):
        setattr(pipe, _METHOD, _Listener(pipe, tell, tokenizers or _TOKENIZERS))


def unlisten(pipe: DiffusionPipeline) -> None:
    """Undo `listen`; does nothing to a pipeline that is not listened to."""
    listener = pipe.__dict__.get(_METHOD)
    if isinstance(listener, _Listener):
        delattr(pipe, _METHOD)
        if listener.previous is not None:
            setattr(pipe, _METHOD, listener.previous)


class _Listener:
    """Stands in for one pipeline's `encode_prompt`."""

    def __init__(self, pipe: DiffusionPipeline, tell: Tell, tokenizers: tuple[str, ...]):
        self.pipe = weakref.ref(pipe)  # the pipeline holds this object
        self.tell = tell
        self.tokenizers = tokenizers
        self.previous = pipe.__dict__.get(_METHOD)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pipe = self.pipe()
        own = MethodType(getattr(type(pipe), _METHOD), pipe)
        given = inspect.signature(own).bind(*args, **kwargs)  # `previous` may be a listener too
        given.apply_defaults()
        arguments = given.arguments
        text = arguments.get("prompt") if arguments.get("prompt") is not None else arguments.get("prompt_embeds")
        names = names_given(pipe, text)
        result = (self.previous or own)(*args, **kwargs)
        prompts = _prompts(pipe, arguments, self.tokenizers)
        self.tell(Encoded(names, prompts, arguments.get("do_classifier_free_guidance"), *encoded_states(result)))
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # Copies of the pipeline are not listened to; the copy is known by now, for this is one of its attributes.
        copied = memo[id(self.pipe())]
        return MethodType(getattr(type(copied), _METHOD), copied)


def _prompts(pipe: DiffusionPipeline, arguments: dict[str, Any], tokenizers: tuple[str, ...]) -> list[Prompt] | None:
    """As they are tokenised: a textual inversion of several vectors is several words then."""
    if arguments.get("prompt") is None:
        return None
    expand = getattr(pipe, "maybe_convert_prompt", None)
    each = []
    for name in tokenizers:
        # tokenizer_2 gets prompt_2, or where there is none the prompt
        prompt = arguments.get(name.replace("tokenizer", "prompt")) or arguments["prompt"]
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        tokenizer = tokenizer_of(pipe, name)
        each.append(expand(prompts, tokenizer) if expand is not None and tokenizer is not None else prompts)
    return [texts[0] if len(set(texts)) == 1 else texts for texts in zip(*each, strict=True)]


def text_parts(pipe: DiffusionPipeline | None, tokenizers: tuple[str, ...], open_ended: bool) -> tuple[TextPart, ...]:
    """What the layers attend to, where that is the tokenizers' texts of the prompt as it is.

    open_ended: the last text is as long as the pipeline's call says.
    """
    if not tokenizers or pipe is None or _cleans_prompts(pipe):
        return ()
    parts = []
    for name in tokenizers:
        tokenizer = tokenizer_of(pipe, name)
        encoder = name.replace("tokenizer", "text_encoder")
        if name == "tokenizer_3" and getattr(pipe, encoder, None) is None:
            tokenizer = None  # Stable Diffusion 3 without T5 has zeros in its place
        elif tokenizer is None:
            return ()
        last = open_ended and name == tokenizers[-1]
        parts.append(TextPart(tokenizer, None if last else tokenizer.model_max_length))
    return tuple(parts)


def _cleans_prompts(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline tokenises other prompts than it is given, as DeepFloyd IF does."""
    method = getattr(type(pipe), _METHOD, None)
    return method is not None and "clean_caption" in inspect.signature(method).parameters


def tokenizer_of(pipe: DiffusionPipeline | None, name: str = "tokenizer") -> Any | None:
    """One of the pipeline's tokenizers. The two of SDXL give the same tokens; its refiner has the second alone."""
    if name != "tokenizer":
        return getattr(pipe, name, None)
    return getattr(pipe, "tokenizer", None) or getattr(pipe, "tokenizer_2", None)
