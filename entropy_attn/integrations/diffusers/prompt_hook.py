"""Following which texts a pipeline encodes, undone without a trace."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from diffusers import DiffusionPipeline

from entropy_attn.integrations.diffusers.pipeline_calls import running
from entropy_attn.integrations.diffusers.row_texts import Encoded, encoded_states
from entropy_attn.prompts import TextPart
from entropy_attn.recorders.base import Prompt

_METHOD = "encode_prompt"
_TOKENIZERS = ("tokenizer",)

OnText = Callable[[Encoded], None]


def add_prompt_hook(
    pipe: DiffusionPipeline, on_text: OnText, tokenizers: tuple[str, ...] = _TOKENIZERS
) -> Callable[[], None]:
    """From now on `on_text(encoded)` is called whenever `pipe` has encoded a prompt, a negative one or another text.

    Returns a function that undoes it.
    """
    if not hasattr(type(pipe), _METHOD):
        return _add_encoder_hook(pipe, on_text)
    hooked = pipe.__dict__.get(_METHOD)
    if not isinstance(hooked, _HookedMethod):
        hooked = _HookedMethod(pipe)
        setattr(pipe, _METHOD, hooked)
    hooked.hooks.append((on_text, tokenizers or _TOKENIZERS))
    return hooked.latest_remover()


def _add_encoder_hook(pipe: DiffusionPipeline, on_text: OnText) -> Callable[[], None]:
    """The same for LDM, whose pipeline calls its text encoder itself; a text is identified by its tokens."""
    encoder = getattr(pipe, "bert", None)
    if encoder is None:
        return lambda: None
    of_pipe = weakref.ref(pipe)

    def after(encoder: Any, args: tuple, output: Any) -> None:
        if (run := running(of_pipe())) is None:
            return
        texts = run.arguments.get("prompt"), ""
        text = next((text for text in texts if _same_tokens(run.pipe, text, args[0])), None)
        names = run.names_of(text)  # UNNAMED for None
        on_text(Encoded(names, None, None, output[0], None))

    return encoder.register_forward_hook(after).remove


def _same_tokens(pipe: DiffusionPipeline, text: Any, ids: torch.Tensor) -> bool:
    """Whether these are the tokens of a text, or of one that is repeated."""
    found = pipe.tokenizer(
        text, padding="max_length", max_length=ids.shape[1], truncation=True, return_tensors="pt"
    ).input_ids
    return found.shape[1] == ids.shape[1] and len(found) in (1, len(ids)) and bool((ids.cpu() == found).all())


class _HookedMethod:
    """Stands in for one pipeline's `encode_prompt`."""

    def __init__(self, pipe: DiffusionPipeline):
        self.pipe = weakref.ref(pipe)  # the pipeline holds this object
        self.hooks: list[tuple[OnText, tuple[str, ...]]] = []
        self.previous = pipe.__dict__.get(_METHOD)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pipe = self.pipe()
        original = MethodType(getattr(type(pipe), _METHOD), pipe)
        given = inspect.signature(original).bind(*args, **kwargs)
        given.apply_defaults()
        arguments = given.arguments
        # Embeddings are what is encoded where both are given: Flux 2 passes an empty text with them.
        given_embeds = arguments.get("prompt_embeds") is not None
        text = arguments["prompt_embeds"] if given_embeds else arguments.get("prompt")
        run = running(pipe)
        names = () if run is None else run.names_of(text)
        result = (self.previous or original)(*args, **kwargs)
        guided = arguments.get("do_classifier_free_guidance")
        for on_text, tokenizers in list(self.hooks):
            prompts = _tokenized_prompts(pipe, arguments, tokenizers)
            on_text(Encoded(names, prompts, guided, *encoded_states(result)))
        return result

    def latest_remover(self) -> Callable[[], None]:
        """A function that removes the latest hook; with the last hook, the method is restored."""
        hook = self.hooks[-1]

        def remove() -> None:
            self.hooks.remove(hook)
            pipe = self.pipe()
            if not self.hooks and pipe is not None:
                delattr(pipe, _METHOD)
                if self.previous is not None:
                    setattr(pipe, _METHOD, self.previous)

        return remove

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # Copies of the pipeline have no hooks. The copy is in `memo` already, because this is one of its attributes.
        copied = memo[id(self.pipe())]
        return MethodType(getattr(type(copied), _METHOD), copied)


def _tokenized_prompts(
    pipe: DiffusionPipeline, arguments: dict[str, Any], tokenizers: tuple[str, ...]
) -> list[Prompt] | None:
    """The prompts as they are tokenized: a textual inversion with several vectors is several words then."""
    if arguments.get("prompt") is None:
        return None
    expand = getattr(pipe, "maybe_convert_prompt", None)
    each = []
    for name in tokenizers:
        # tokenizer_2 gets prompt_2, or without one the prompt
        prompt = arguments.get(name.replace("tokenizer", "prompt")) or arguments["prompt"]
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        tokenizer = tokenizer_of(pipe, name)
        each.append(expand(prompts, tokenizer) if expand is not None and tokenizer is not None else prompts)
    return [texts[0] if len(set(texts)) == 1 else texts for texts in zip(*each, strict=True)]


def text_parts(pipe: DiffusionPipeline | None, tokenizers: tuple[str, ...], open_ended: bool) -> tuple[TextPart, ...]:
    """The parts of the text that layers attend to, where they are the tokenizers' texts of the unchanged prompt.

    open_ended: the last text is as long as the pipeline's call says.
    """
    if not tokenizers or pipe is None or _cleans_prompts(pipe):
        return ()
    parts = []
    for name in tokenizers:
        tokenizer: Any = tokenizer_of(pipe, name)
        encoder = name.replace("tokenizer", "text_encoder")
        if name == "tokenizer_3" and getattr(pipe, encoder, None) is None:
            tokenizer = None  # Stable Diffusion 3 without T5 has zeros instead
        elif tokenizer is None:
            return ()
        last = open_ended and name == tokenizers[-1]
        parts.append(TextPart(tokenizer, None if last else tokenizer.model_max_length))
    return tuple(parts)


def _cleans_prompts(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline changes prompts before it tokenizes them, as DeepFloyd IF does."""
    method = getattr(type(pipe), _METHOD, None)
    return method is not None and "clean_caption" in inspect.signature(method).parameters


def tokenizer_of(pipe: DiffusionPipeline, name: str = "tokenizer") -> Any | None:
    """One of the pipeline's tokenizers. The two of SDXL give the same tokens; its refiner has only the second."""
    if name != "tokenizer":
        return getattr(pipe, name, None)
    return getattr(pipe, "tokenizer", None) or getattr(pipe, "tokenizer_2", None)
