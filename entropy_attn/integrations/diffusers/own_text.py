"""The text of a mix goes through the denoiser beside the prompt's: which denoisers allow that, and in which arguments.

For cross-attention both go through the same projections of the denoiser and of its layers, as one text with the tokens
of both. That is right where every token reaches the keys by itself, which the table of models states and
`check_own_text` confirms. For joint attention see `own_text_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.models import MODELS, Model
from entropy_attn.integrations.diffusers.private import AttentionLayer
from entropy_attn.mix import Mix, OwnText
from entropy_attn.recorders.base import Parts
from entropy_attn.routing.calls import TwoTexts

# Settings of a UNet that lead the text somewhere else than to the keys of its layers, or to them as other tokens.
_OTHER_WAYS = {
    "addition_embed_type": ("text", "text_image"),
    "encoder_hid_dim_type": ("text_image_proj", "image_proj"),
    "dual_cross_attention": (True,),
}


def refuse(mix: Mix, denoiser: object, reason: str) -> NoReturn:
    """Raise for a denoiser, or a call of it, that takes no second text."""
    raise Unroutable(type(denoiser).__name__, [f"mix={type(mix).__name__} with a text of its own: {reason}"])


def check_own_text(mix: Mix, denoiser: Any, model: Model, modules: Mapping[str, AttentionLayer]) -> None:
    """Refuse denoisers in which a second text would not be what it is by itself, or would change the prompt.

    Raises:
        Unroutable: with the reason.
    """
    if mix.own_text is None:
        return
    if model.text_rows is not None:
        return
    if not model.second_text:
        served = ", ".join(each.denoiser for each in MODELS if each.second_text or each.text_rows)
        batch = "leave text out and give the pipeline a negative prompt, with classifier-free guidance on"
        why = "its text is attended to together with the image" if model.joint else "it does not take two texts"
        refuse(mix, denoiser, f"{why}; it is served in {served}. For a mix such as NAG, {batch}")
    for name, values in _OTHER_WAYS.items():
        if (value := getattr(denoiser.config, name, None)) in values:
            refuse(mix, denoiser, f"{name}={value!r} uses the text, or another one, outside of cross-attention")
    for name, module in modules.items():
        if getattr(module, "add_k_proj", None) is not None:
            refuse(mix, denoiser, f"layer {name!r} has added keys and values (add_k_proj), beside those of the text")
        if isinstance(getattr(module, "norm_cross", None), nn.GroupNorm):
            refuse(mix, denoiser, f"layer {name!r} normalizes the text over all of its tokens (GroupNorm)")


@torch.compiler.disable  # else a graph would be made for every length
def with_own_text(
    mix: Mix,
    denoiser: Any,
    model: Model,
    parameters: Sequence[str],
    args: tuple,
    kwargs: dict[str, Any],
    parts: Parts | None,
) -> tuple[tuple, dict[str, Any], TwoTexts]:
    """The arguments of a denoiser call with the text of the mix behind that of the prompt.

    parts: the branches of the batch; None if they are not known.
    """
    text = cast(OwnText, mix.own_text)
    arguments = dict(zip(parameters, args, strict=False)) | kwargs
    prompt = prompt_of(mix, denoiser, model, arguments)
    batch, tokens, _ = prompt.shape
    if text.pooled is not None:
        refuse(mix, denoiser, "pooled: the pooled text remains the prompt's; leave it out")
    rows = rows_of_text(mix, denoiser, batch, parts)
    changed: dict[str, Any] = {str(model.text): torch.cat([prompt, of_rows(text.embeds, rows, prompt)], dim=1)}
    mask = None if model.text_mask is None else arguments.get(model.text_mask)
    if (mask is None) != (text.mask is None):
        if mask is None:
            refuse(mix, denoiser, "mask: the denoiser is called without a mask of the text; leave it out")
        refuse(mix, denoiser, f"mask: the denoiser is called with {model.text_mask}; give OwnText(embeds, mask)")
    if mask is not None and text.mask is not None:
        if not isinstance(mask, Tensor) or mask.shape != (batch, tokens):
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            refuse(mix, denoiser, f"{model.text_mask}: expected a tensor of shape ({batch}, {tokens}), got {shape}")
        changed[str(model.text_mask)] = torch.cat([mask, of_rows(text.mask, rows, mask)], dim=1)
    return *replaced(changed, parameters, args, kwargs), TwoTexts(tokens, text.embeds.shape[1])


def replaced(
    changed: dict[str, Any], parameters: Sequence[str], args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """A call with some of its arguments replaced."""
    args = tuple(changed.pop(name, value) for name, value in zip(parameters, args, strict=False))
    return args, kwargs | changed


def prompt_of(mix: Mix, denoiser: object, model: Model, arguments: Mapping[str, Any]) -> Tensor:
    """The text that a denoiser is called with, (batch, tokens, channels), with the channels of the mix's text."""
    prompt = arguments.get(str(model.text))
    if not isinstance(prompt, Tensor) or prompt.dim() != 3:
        shape = tuple(prompt.shape) if isinstance(prompt, Tensor) else type(prompt).__name__
        refuse(mix, denoiser, f"{model.text}: expected a tensor (batch, tokens, channels), got {shape}")
    given, channels = cast(OwnText, mix.own_text).embeds.shape[2], prompt.shape[2]
    if given != channels:
        as_prompt = "as the text that the denoiser is called with"
        refuse(mix, denoiser, f"embeds: expected {channels} channels, {as_prompt}, got {given}")
    return prompt


def rows_of_text(mix: Mix, denoiser: object, batch: int, parts: Parts | None) -> list[int]:
    """For each row of the batch, its row of the mix's text: texts go with the images of their prompts."""
    number = len(cast(OwnText, mix.own_text).embeds)
    if number == 1:
        return [0] * batch
    if parts is None or not parts.names:
        if number == batch:
            return list(range(batch))
        refuse(
            mix,
            denoiser,
            f"embeds has {number} texts and the batch {batch} rows, whose branches are not known; give one text, or "
            "one for each row, or apply to the pipeline with branch='cond'",
        )
    each = batch // len(parts.names)
    if each % number and number == batch:
        return list(range(batch))
    if each % number:
        refuse(mix, denoiser, f"embeds has {number} texts for {each} images; give one, or one for each prompt or image")
    rows = [0] * batch
    for name in parts.names:
        for position, row in enumerate(parts.rows_of(name, batch)):
            rows[row] = position * number // each
    return rows


def of_rows(tensor: Tensor, rows: Sequence[int], like: Tensor) -> Tensor:
    """Rows of a tensor, with the device and the dtype of another."""
    tensor = tensor.to(like.device, like.dtype)
    if len(tensor) == 1:
        return tensor.expand(len(rows), *tensor.shape[1:])
    return tensor if list(rows) == list(range(len(tensor))) else tensor[torch.tensor(rows, device=like.device)]
