"""Rows behind those of a denoiser's batch that carry another text through joint attention.

Each has the image of one sample of the batch. In every layer it is the same image: its queries, keys and values are
those of the sample, and so is what the layer answers to them. The text of the row attends to itself and to that image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_attn.errors import Unroutable
from entropy_attn.ops import api as ops
from entropy_attn.routing.calls import AttentionArguments, LayerCall


class TextRows(NamedTuple):
    """The samples whose images the rows have."""

    samples: tuple[int, ...]

    def divide(
        self, layer_call: LayerCall, arguments: AttentionArguments, batch: int | None, image_tokens: int | None
    ) -> tuple[AttentionArguments, AttentionArguments | None]:
        """The call of the batch, and in joint attention that of the rows, with the image of their samples.

        batch: rows of the denoiser's batch.
        image_tokens: among the keys.

        Raises:
            Unroutable: the text is not at one place among the tokens of all rows, or the call is of other rows.
        """
        if batch is None or arguments.query.dim() != 4 or len(arguments.query) != batch + len(self.samples):
            got = tuple(arguments.query.shape)
            reason = (
                f"its query has the shape {got}, not the rows of the batch and {len(self.samples)} of a second text"
            )
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        first = arguments.of_samples(range(batch))
        if layer_call.kind == "self" and layer_call.text is None:
            return first, None
        known = layer_call.kind == "joint" and layer_call.text in ("first", "last") and image_tokens is not None
        if not known or layer_call.ragged or layer_call.sample is not None or arguments.attn_mask is not None:
            reason = (
                "its text is not at one place among the tokens of all samples, or masked, so it takes no second text; "
                "give a mix without a text of its own"
            )
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        image, theirs = first.of_samples(self.samples), arguments.of_samples(range(batch, len(arguments.query)))
        text = arguments.key.shape[2] - (image_tokens or 0)

        def joined(text_of: Tensor, image_of: Tensor, has_text: bool) -> Tensor:
            if not has_text:
                return image_of
            if layer_call.text == "first":
                return torch.cat([text_of[:, :, :text], image_of[:, :, text:]], dim=2)
            start = text_of.shape[2] - text
            return torch.cat([image_of[:, :, :start], text_of[:, :, start:]], dim=2)

        return first, image._replace(
            query=joined(theirs.query, image.query, self.text_queries(arguments, image_tokens) > 0),
            key=joined(theirs.key, image.key, True),
            value=joined(theirs.value, image.value, True),
        )

    def text_queries(self, arguments: AttentionArguments, image_tokens: int | None) -> int:
        """How many queries the text has: all of its tokens, or none."""
        return arguments.query.shape[2] - (image_tokens or 0)

    def behind(
        self,
        out: Tensor,
        layer_call: LayerCall,
        of_rows: AttentionArguments | None,
        scale: float | Tensor | None,
        image_tokens: int | None,
    ) -> Tensor:
        """The answer of the batch, and behind it that of the rows.

        of_rows: their call, see `divide`.
        scale: of their text, a tensor of shape (B, H) for the samples of the batch.
        """
        image = out[list(self.samples)]
        text = 0 if of_rows is None else self.text_queries(of_rows, image_tokens)
        if of_rows is None or not text:
            return torch.cat([out, image])
        if isinstance(scale, Tensor):
            scale = scale[list(self.samples)] if scale.dim() == 2 and len(scale) > 1 else scale
            scale = scale.to(out.device, non_blocking=True)
        tokens = slice(0, text) if layer_call.text == "first" else slice(image.shape[2] - text, None)
        answer = ops.scaled_dot_product_attention(*of_rows.of_rows(tokens)._replace(scale=scale))
        parts = [answer, image[:, :, text:]] if layer_call.text == "first" else [image[:, :, :-text], answer]
        return torch.cat([out, torch.cat(parts, dim=2)])
