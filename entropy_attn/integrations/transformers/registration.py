"""`register`: this package's attention under a name, for `attn_implementation=` of any model of transformers.

This is the only file that relies on names that transformers does not document;
tests/integrations/transformers/test_transformers_names.py pins them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.transformers.calls import arguments_of, with_policy
from entropy_attn.ops import api as ops
from entropy_attn.scale import Policy, needs_train_tokens
from entropy_attn.scale.call import with_inner
from entropy_attn.validation import expected, require_policy

NOT_OFFERED = "this version of transformers does not send its attention through AttentionInterface"
_NO_SDPA = "its attention is not that of torch's scaled_dot_product_attention, by its own account (_supports_sdpa)"

# transformers reads these out of a name: an attention whose name has "flash" gets no masks.
_MEANINGS = ("flash", "flex", "sdpa", "eager", "paged")

# Attributes of policies that ask for, or answer with, what only a routed pipeline has.
_OF_PIPELINES = (
    "follows", "gives_key_groups", "gives_sample_scales",
    "needs_branches", "needs_num_steps", "needs_sigma", "needs_timestep",
)  # fmt: skip


class Registration:
    """A name of an attention, as `register` returns it; `remove()`, or leaving it as a context manager, undoes it.

    Args:
        name: the name, for `attn_implementation=` and `set_attn_implementation`.
        attention: the function, with the signature that the AttentionInterface of transformers has.

    Attributes:
        name: as given.
        active: False once removed.
    """

    def __init__(self, name: str, attention: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]):
        self.name = name
        self._used: list[tuple[Any, str | None]] = []  # configurations, with what they had before
        self._active = True
        AttentionInterface.register(name, attention)
        # Under a name without a mask function, attention gets no padding mask at all.
        AttentionMaskInterface.register(name, AttentionMaskInterface()["sdpa"])

    @property
    def active(self) -> bool:
        """False once removed."""
        return self._active

    def use(self, model: PreTrainedModel) -> None:
        """Choose this attention in a loaded model, until `remove()`, which restores what the model had.

        The same as `model.set_attn_implementation(name)`, with two differences: a model that cannot be served is
        refused, and it is undone. Models that share the configuration object switch together.

        Args:
            model: a model of transformers.

        Raises:
            TypeError: `model` is no model of transformers.
            RuntimeError: the name was removed.
            Unroutable: its attention does not go through AttentionInterface, or is not that of torch's
                scaled_dot_product_attention. It is a `RuntimeError`; the model is as before.
        """
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"model: expected a model of transformers, got {type(model).__name__}")
        if not self._active:
            raise RuntimeError(f"the attention {self.name!r} was removed: call register again")
        parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
        for part in parts:
            if not part._supports_sdpa:
                raise Unroutable(type(part).__name__, [_NO_SDPA])
        before = [(config, config._attn_implementation) for config in _configs(model)]
        try:
            model.set_attn_implementation(self.name)
            for part in parts:
                if part.config._attn_implementation != self.name:
                    raise Unroutable(type(part).__name__, [NOT_OFFERED])
        except BaseException:
            _restore(before, self.name)
            raise
        # Of a model that is used twice, the first state is restored last.
        self._used = before + self._used

    def remove(self) -> None:
        """Undo the registration: the name is unknown to transformers, and models of `use` are as before.

        A model that got the name in another way keeps it, and transformers raises KeyError at its next call. Does
        nothing the second time.
        """
        if self._active:
            self._active = False
            _restore(self._used, self.name)
            self._used = []
            AttentionInterface._global_mapping.pop(self.name, None)
            AttentionMaskInterface._global_mapping.pop(self.name, None)

    def __enter__(self) -> Registration:
        """The registration itself.

        Raises:
            RuntimeError: it was removed.
        """
        if not self._active:
            raise RuntimeError(f"the attention {self.name!r} was removed: call register again")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Registration {self.name!r}{'' if self._active else ', removed'}>"


def register(name: str = "entropy_attn", scale: Policy | None = None) -> Registration:
    """Make this package's attention available to models of transformers under a name, until `remove()`.

    Then `AutoModel.from_pretrained(..., attn_implementation=name)` and `model.set_attn_implementation(name)` choose it,
    for every model whose attention goes through the AttentionInterface of transformers: text encoders, vision
    transformers, decoders with and without grouped heads and a cache. It computes what the "sdpa" implementation
    computes, from the same masks, and returns no attention weights either. docs/backends.md says more.

    Args:
        name: the name, an identifier in lower case. transformers gives names with "flash", "flex", "sdpa", "eager" and
            "paged" a meaning.
        scale: a scale policy for the self-attention of these models: any callable (CallInfo) -> float, tensor or None,
            such as `LogN(train_tokens=197)`. `CallInfo.layer` is the class of the attention module with its
            `layer_idx`, if it has one ("LlamaAttention.3"); `step` is always 0. A model with a scale of its own keeps
            it, times the policy's factor on 1 / sqrt(D). None keeps the models' scales.

    Returns:
        The `Registration`. It is a context manager that undoes the registration at its end.

    Raises:
        TypeError: `name` is no text, or `scale` no policy.
        ValueError: `name` is no such identifier or is taken; the policy needs the number of tokens at training.

        While a model runs, a call raises `Unroutable`, a RuntimeError, for what this attention does not offer (dropout
        in training, softcap, sinks and other arguments that are not known here), and with a policy for a call that does
        not show whether it is self-attention, as in the decoder of an encoder-decoder.
    """
    what = "an identifier in lower case without " + ", ".join(_MEANINGS)
    if not isinstance(name, str):
        raise TypeError(expected("name", what, name))
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or any(meaning in name for meaning in _MEANINGS):
        raise ValueError(expected("name", what, name))
    if name in AttentionInterface() or name in AttentionMaskInterface():
        raise ValueError(expected("name", "a name that transformers does not have yet", name))
    if scale is not None:
        require_policy("scale", scale)
        if needs_train_tokens(scale):
            raise ValueError(
                f"scale={scale!r} needs the number of tokens at training, which no model of transformers states: give "
                "train_tokens=... instead of 'auto'"
            )
        for each in with_inner(scale):
            if any(getattr(each, name, False) for name in _OF_PIPELINES):
                raise ValueError(
                    f"scale={scale!r}: {type(each).__name__} is for the pipelines that `ea.apply` routes; models of "
                    "transformers take policies of one factor per head"
                )

    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        arguments = arguments_of(module, *args, **kwargs)
        if scale is not None:
            arguments = with_policy(scale, module, arguments)
        return ops.scaled_dot_product_attention(*arguments).transpose(1, 2).contiguous(), None

    return Registration(name, attention)


def _configs(model: PreTrainedModel) -> Iterator[Any]:
    """The configurations that `set_attn_implementation` of `model` may change, each once."""
    seen = set()
    found = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while found:
        config = found.pop()
        if id(config) not in seen:
            seen.add(id(config))
            found += [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]
            yield config


def _restore(before: list[tuple[Any, str | None]], name: str) -> None:
    """Give each configuration what it had, unless another attention than `name` was chosen since."""
    for config, implementation in before:
        if config._attn_implementation == name:
            config._attn_implementation_internal = implementation  # without its parts, which are in the list themselves
