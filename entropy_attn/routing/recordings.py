"""What the recorders request of one attention call, and what they are given of its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from entropy_attn.errors import Unroutable
from entropy_attn.ops.api import AttentionOutput
from entropy_attn.recorders.base import Parts, Recorder, unknown_rows
from entropy_attn.routing.calls import AttentionArguments, DenoiserCall, LayerCall, rows_of
from entropy_attn.scale import CallInfo


@dataclass(frozen=True)
class Recordings:
    """The requests of the recorders for one attention call, at least one.

    Attributes:
        layer_call, info: the call.
        denoiser_call: the pass of the denoiser that the call belongs to.
        recordable: False for a layer that is called outside of a pass. The requests are computed all the same, because
            gradient checkpointing has to recompute what the first call computed, but they are not recorded.
        requests: each recorder with its request.
    """

    layer_call: LayerCall
    info: CallInfo
    denoiser_call: DenoiserCall
    recordable: bool
    requests: tuple[tuple[Recorder, Literal["entropy"] | tuple[int, int]], ...]

    @property
    def entropy(self) -> bool:
        """Whether the entropy is requested."""
        return any(request == "entropy" for _, request in self.requests)

    @property
    def text_range(self) -> tuple[int, int] | None:
        """The smallest range (start, stop) of text positions that has every requested range in it."""
        ranges = [request for _, request in self.requests if request != "entropy"]
        return (min(start for start, _ in ranges), max(stop for _, stop in ranges)) if ranges else None

    @property
    def map_keys(self) -> tuple[int, int] | None:
        """`text_range` in keys: recorders count positions of the text, which is not always first among the keys."""
        if (text_range := self.text_range) is None:
            return None
        first = self.info.seqlen_k - self.info.text_tokens if self.layer_call.text == "last" else 0
        return text_range[0] + first, text_range[1] + first

    def check(self, arguments: AttentionArguments) -> None:
        """Refuse a call whose statistics have no meaning, or whose rows cannot be assigned to branches."""
        query, mask = arguments.query, arguments.attn_mask
        if arguments.dropout_p > 0.0:
            self._refuse(f"dropout_p={arguments.dropout_p}: attention is recorded without dropout only")
        if not self.recordable:
            return
        if self.layer_call.ragged and mask is not None and (mask.dtype != torch.bool or mask.shape[-2] != 1):
            self._refuse(
                f"its mask of {mask.dtype} and shape {tuple(mask.shape)} does not tell where the image of each sample "
                "begins; a boolean mask of the keys does"
            )
        batch = None if self.layer_call.sample is not None else self.denoiser_call.batch
        for recorder, _ in self.requests:
            names = self.denoiser_call.parts.names if recorder.branches is None else recorder.branches
            if (reason := unknown_rows(query, batch, names)) is not None:
                self._refuse(reason)

    def give(self, result: AttentionOutput, arguments: AttentionArguments) -> None:
        """Give every recorder what it requested. The queries are all rows of the call, or those of the image alone."""
        if not self.recordable:
            return
        scale = self.info.head_dim**-0.5 if arguments.scale is None else arguments.scale
        rows = self._image_rows(arguments)
        for recorder, request in self.requests:
            measured = self._measured(result, request, rows)
            parts = self.denoiser_call.parts if recorder.branches is None else Parts(recorder.branches)
            if self.layer_call.sample is None:
                measured, branches = parts.sort(measured), parts.names
            else:
                branches = (parts.name_of(self.layer_call.sample, self.layer_call.samples),)
            recorder.record(self.info, scale, measured, branches, self.denoiser_call.latent_size)

    def _measured(
        self, result: AttentionOutput, request: Literal["entropy"] | tuple[int, int], rows: slice | Tensor
    ) -> Tensor:
        if request == "entropy":
            assert result.entropy is not None  # it was asked for
            if isinstance(rows, slice):
                return result.entropy[..., rows]
            return result.entropy.gather(-1, rows[:, None].expand(-1, result.entropy.shape[1], -1))
        assert result.map is not None and self.text_range is not None
        first = self.text_range[0]
        found = result.map[..., request[0] - first : request[1] - first]
        return (
            found[:, rows]
            if isinstance(rows, slice)
            else found.gather(1, rows[..., None].expand(-1, -1, found.shape[2]))
        )

    def _image_rows(self, arguments: AttentionArguments) -> slice | Tensor:
        """The queries of the generated image; their indices (B, queries) if they begin elsewhere in each sample."""
        queries, mask = self.info.picture_queries, arguments.attn_mask
        if self.layer_call.ragged and mask is not None:  # without a mask, all texts have the same length
            # The image follows its text, and what is masked follows the image. Nothing here waits for the device.
            text = mask.expand(len(arguments.query), 1, 1, -1).flatten(1).sum(1) - queries
            return text[:, None] + torch.arange(queries, device=text.device)
        first = 0
        if arguments.query.shape[-2] == self.info.seqlen_q:
            first = rows_of(self.layer_call, self.info)[0].start or 0
        return slice(first, first + queries)

    def _refuse(self, reason: str) -> None:
        raise Unroutable(f"layer {self.layer_call.layer!r}", [reason])
