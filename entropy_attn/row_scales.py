"""Joint attention with one scale for the rows of the picture and another for those of the text."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .ops import AttentionOutput
from .scale import CallInfo, RowScale

# (query, attn_mask, scale) -> what attention gives for these rows
Attend = Callable[[torch.Tensor, "torch.Tensor | None", "float | torch.Tensor | None"], AttentionOutput]
_ROWS_AT = AttentionOutput(out=2, lse=2, entropy=2, map=1)


def attend_by_rows(
    attend: Attend,
    query: torch.Tensor,
    attn_mask: torch.Tensor | None,
    info: CallInfo,
    scales: RowScale,
    own: float | torch.Tensor | None,
) -> AttentionOutput:
    """One call for the rows of the picture and one for the text's; `own` is the model's scale.

    Rows do not know of each other, so that two calls do the work of one, and exactly: scaling the queries of one call
    instead would round them once more in half precision, and could not change a scale of zero.
    """
    image = info.image_rows
    runs = [(slice(0, image.start), scales.text), (image, scales.image), (slice(image.stop, None), scales.text)]
    parts = [
        attend(query[:, :, rows], _rows_of_mask(attn_mask, rows), own if scale is None else scale)
        for rows, scale in runs
        if query[:, :, rows].shape[2]
    ]
    joined = zip(zip(*parts, strict=True), _ROWS_AT, strict=True)
    return AttentionOutput(*(None if found[0] is None else torch.cat(found, dim) for found, dim in joined))


def _rows_of_mask(attn_mask: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    if attn_mask is None or attn_mask.dim() < 2 or attn_mask.shape[-2] == 1:
        return attn_mask
    return attn_mask[..., rows, :]
