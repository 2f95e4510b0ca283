"""The text of a mix in joint attention: further rows behind the batch of a denoiser call, and the result without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from entropy_attn.integrations.diffusers.models import Model, RowArguments
from entropy_attn.integrations.diffusers.own_text import of_rows, prompt_of, refuse, replaced, rows_of_text
from entropy_attn.mix import Mix, OwnText
from entropy_attn.recorders.base import Parts
from entropy_attn.routing.text_rows import TextRows

_HARMLESS = {"scale"}  # of joint_attention_kwargs: that of LoRAs


@torch.compiler.disable
def with_text_rows(
    mix: Mix,
    denoiser: Any,
    model: Model,
    parameters: Sequence[str],
    args: tuple,
    kwargs: dict[str, Any],
    parts: Parts | None,
    samples: Sequence[int],
) -> tuple[tuple, dict[str, Any], TextRows]:
    """The arguments of a denoiser call with a further row for each of these samples, with the text of the mix.

    parts: the branches of the batch; None if they are not known.
    """
    text, rule = cast(OwnText, mix.own_text), cast(RowArguments, model.text_rows)
    arguments = dict(zip(parameters, args, strict=False)) | kwargs
    prompt = prompt_of(mix, denoiser, model, arguments)
    batch, tokens, _ = prompt.shape
    for name in rule.refused:
        if arguments.get(name) is not None:
            refuse(mix, denoiser, f"{name}: a ControlNet has no part for the second text; leave it out")
    options = set(arguments.get("joint_attention_kwargs") or ()) - _HARMLESS
    if options:
        refuse(mix, denoiser, f"joint_attention_kwargs: expected no more than 'scale', got {sorted(options)}")
    if text.embeds.shape[1] != tokens:
        refuse(
            mix,
            denoiser,
            f"embeds: expected {tokens} tokens, as the prompt has in joint attention, got {text.embeds.shape[1]}; give "
            "encode_prompt the same max_sequence_length",
        )
    if text.mask is not None:
        refuse(mix, denoiser, "mask: the denoiser is called without a mask of the text; leave it out")
    if (text.pooled is None) != (rule.pooled is None):
        takes = "takes none; leave it out" if rule.pooled is None else f"takes {rule.pooled}; give the text's"
        refuse(mix, denoiser, f"pooled: the denoiser {takes}")
    rows = rows_of_text(mix, denoiser, batch, parts)
    mine = [rows[sample] for sample in samples]
    changed: dict[str, Any] = {str(model.text): torch.cat([prompt, of_rows(text.embeds, mine, prompt)])}
    if rule.pooled is not None and text.pooled is not None:
        pooled = arguments[rule.pooled]
        if text.pooled.shape[1] != pooled.shape[1]:
            refuse(mix, denoiser, f"pooled: expected {pooled.shape[1]} channels, got {text.pooled.shape[1]}")
        changed[rule.pooled] = torch.cat([pooled, of_rows(text.pooled, mine, pooled)])
    for name in rule.repeated:
        value = arguments.get(name)
        if isinstance(value, Tensor) and value.dim() and len(value) == batch:  # else one for all rows
            changed[name] = torch.cat([value, value[list(samples)]])
    return *replaced(changed, parameters, args, kwargs), TextRows(tuple(samples))


@torch.compiler.disable
def without_rows(result: Any, batch: int) -> Any:
    """What a denoiser returns, for the rows of its batch alone."""
    if isinstance(result, tuple):
        return result[0][:batch], *result[1:]
    result["sample"] = result["sample"][:batch]
    return result
