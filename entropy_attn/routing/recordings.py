"""What the recorders request of one attention call, and what they are given of its result."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from entropy_attn.errors import Unroutable
from entropy_attn.ops.api import AttentionOutput
from entropy_attn.ops.probabilities import Logits, probabilities
from entropy_attn.recorders.base import Parts, Probabilities, Recorder, Tokens, unknown_rows
from entropy_attn.routing.calls import AttentionArguments, DenoiserCall, LayerCall, rows_of
from entropy_attn.routing.key_arguments import KeyArguments
from entropy_attn.routing.shards import Shards
from entropy_attn.scale import CallInfo

Wanted = Literal["entropy", "response", "variance"] | tuple[int, int]


@dataclass(frozen=True)
class Recordings:
    """The requests of the recorders for one attention call, at least one of `requests` and `blocks`.

    Attributes:
        layer_call, info: the call.
        denoiser_call: the pass of the denoiser that the call belongs to.
        recordable: False for a layer that is called outside of a pass. The requests are computed all the same, because
            gradient checkpointing has to recompute what the first call computed, but they are not recorded.
        requests: each recorder with its request.
        shards: how the queries are spread over devices. Recorders get those of all devices, on every device.
        blocks: each recorder with its request of probabilities, which are computed after the call.
        queries: those of the call: "all", or those of the image or the text alone where the two are split.
    """

    layer_call: LayerCall
    info: CallInfo
    denoiser_call: DenoiserCall
    recordable: bool
    requests: tuple[tuple[Recorder, Wanted], ...]
    shards: Shards | None = None
    blocks: tuple[tuple[Recorder, Probabilities], ...] = ()
    queries: Literal["all", "image", "text"] = "all"

    def of_queries(self, part: Literal["image", "text"]) -> Recordings | None:
        """What is requested of the image's queries, or of the text's; None if nothing is."""
        blocks = tuple(block for block in self.blocks if block[1].rows.part == part)
        requests = self.requests if part == "image" else ()
        return replace(self, requests=requests, blocks=blocks, queries=part) if requests or blocks else None

    @property
    def lse(self) -> bool:
        """Whether the log-sum-exp of the rows is needed."""
        return bool(self.blocks)

    @property
    def entropy(self) -> bool:
        """Whether the entropy is requested, alone or with others."""
        return any(isinstance(request, str) for _, request in self.requests)

    @property
    def variance(self) -> bool:
        """Whether the variance of the logits is requested."""
        return any(request == "variance" for _, request in self.requests)

    @property
    def response(self) -> bool:
        """Whether the response to a temperature is requested. A call that is not recorded need not measure it."""
        return self.recordable and any(request == "response" for _, request in self.requests)

    @functools.cached_property  # asked for each request, too
    def text_range(self) -> tuple[int, int] | None:
        """The smallest range (start, stop) of text positions that has every requested range in it."""
        ranges = [request for _, request in self.requests if not isinstance(request, str)]
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
        if self.layer_call.ragged and self.shards is not None:
            self._refuse(
                "its images begin at different positions of the sequence, which is spread over devices: apply without "
                "record, or run the model on one device"
            )
        if self.layer_call.ragged and mask is not None and (mask.dtype != torch.bool or mask.shape[-2] != 1):
            self._refuse(
                f"its mask of {mask.dtype} and shape {tuple(mask.shape)} does not tell where the image of each sample "
                "begins; a boolean mask of the keys does"
            )
        if self.blocks:
            self._check_blocks(arguments)
        batch = None if self.layer_call.sample is not None else self.denoiser_call.batch
        for recorder, _ in (*self.requests, *self.blocks):
            names = self.denoiser_call.parts.names if recorder.branches is None else recorder.branches
            if (reason := unknown_rows(query, batch, names)) is not None:
                self._refuse(reason)

    def check_spread(self) -> None:
        """Refuse a call over the keys of all devices of which something is requested that is known on one alone."""
        for recorder, request in self.requests:
            if request == "variance":
                self._refuse(
                    f"{recorder!r} needs the variance of the logits, and the keys are spread over devices (context "
                    "parallel): give another policy, or run the model on one device"
                )

    def _check_blocks(self, arguments: AttentionArguments) -> None:
        """Refuse a call of which the rows and keys of a request are not known, or not all here."""
        recorder = type(self.blocks[0][0]).__name__
        if self.shards is not None:
            self._refuse(
                f"{recorder}: its queries and keys are spread over devices (context parallel); run the model on one "
                "device, or record with a MapRecorder"
            )
        if arguments.is_causal:
            self._refuse(f"{recorder}: it is causal, so its rows have different keys")

    def give(
        self,
        result: AttentionOutput,
        response: Tensor | None,
        arguments: AttentionArguments,
        groups: KeyArguments | None = None,
    ) -> None:
        """Give every recorder what it requested. The queries are all rows of the call, or those of the image alone.

        response: (B, H, Nq, 2), see `ops.response`; None if it was not requested.
        groups: the key groups of the call.
        """
        if not self.recordable:
            return
        if self.requests:
            starts = self._image_starts(arguments)
            rows = self._image_rows(arguments, starts)
        for recorder, request in self.requests:
            self._record(recorder, self._measured(result, response, request, rows, starts), arguments)
        for recorder, block in self.blocks:
            assert result.lse is not None  # it was asked for
            self._record(recorder, self._probabilities(result.lse, block, arguments, groups), arguments)

    def _record(self, recorder: Recorder, measured: Tensor, arguments: AttentionArguments) -> None:
        scale: float | Tensor = self.info.head_dim**-0.5 if arguments.scale is None else arguments.scale
        parts = self.denoiser_call.parts if recorder.branches is None else Parts(recorder.branches)
        if self.layer_call.sample is None:
            measured, branches = parts.sort(measured), parts.names
        else:
            branches = (parts.name_of(self.layer_call.sample, self.layer_call.samples),)
        of_rows = isinstance(scale, Tensor) and scale.dim() == 2 and self.layer_call.sample is None
        used = parts.sort(scale) if of_rows else scale  # type: ignore[arg-type]
        recorder.record(self.info, used, measured, branches, self.denoiser_call.latent_size)

    def _probabilities(
        self, lse: Tensor, block: Probabilities, arguments: AttentionArguments, groups: KeyArguments | None
    ) -> Tensor:
        device, starts = arguments.query.device, self._image_starts(arguments)
        of_call = Logits(arguments.scale, arguments.attn_mask, *(groups or ()))
        found = probabilities(
            arguments.query.detach(),
            arguments.key.detach(),
            lse.detach(),
            of_call,
            rows=_indices(block.rows, self._first_row(block.rows, starts), self.info.picture_queries, device),
            keys=_indices(block.keys, self._first_key(block.keys, starts), self.info.picture_keys, device),
            heads=block.heads,
            row_weights=block.rows.weights,
            key_weights=block.keys.weights,
        )
        if starts is not None:
            for tokens, dim in ((block.rows, 2), (block.keys, 3)):
                if tokens.part == "text" and tokens.positions is not None:
                    found = _of_own_text(found, tokens.positions, starts, dim)
        return found

    def _image_starts(self, arguments: AttentionArguments) -> Tensor | None:
        """Where the image of each sample begins, (B,), if that differs between them. Nothing waits for the device."""
        mask = arguments.attn_mask
        if not self.layer_call.ragged or mask is None:  # without a mask, all texts have the same length
            return None
        # The image follows its text, and what is masked follows the image.
        return mask.expand(len(arguments.query), 1, 1, -1).flatten(1).sum(1) - self.info.picture_queries

    def _first_row(self, rows: Tokens, starts: Tensor | None) -> int | Tensor:
        """Where the queries of the image or the text begin in the call."""
        if starts is not None:
            return starts if rows.part == "image" else 0
        if self.queries != "all":
            return 0
        image, text = rows_of(self.layer_call, self.info)
        if rows.part == "image":
            return image.start or 0
        assert text is not None  # or a recorder would not request it
        return int(text.start)

    def _first_key(self, keys: Tokens, starts: Tensor | None) -> int | Tensor:
        """Where the keys of the image or the text begin."""
        if starts is not None:
            return starts if keys.part == "image" else 0
        text = self.info.text_tokens
        last = self.layer_call.text == "last"
        if keys.part == "text":
            return self.info.seqlen_k - text if last else 0
        return 0 if last else text

    def _measured(
        self,
        result: AttentionOutput,
        response: Tensor | None,
        request: Wanted,
        rows: slice | Tensor,
        starts: Tensor | None,
    ) -> Tensor:
        if isinstance(request, str):
            assert result.entropy is not None  # it was asked for
            entropy = self._of_image(result.entropy, rows, 2)
            if request == "entropy":
                return entropy
            if request == "variance":
                assert result.variance is not None
                return torch.stack([entropy, self._of_image(result.variance, rows, 2)], dim=-1)
            assert response is not None
            return torch.cat([entropy.unsqueeze(-1), self._of_image(response, rows, 2)], dim=-1)
        assert result.map is not None and self.text_range is not None
        first = self.text_range[0]
        found = self._of_image(result.map[..., request[0] - first : request[1] - first], rows, 1)
        return found if starts is None else _of_own_text(found, range(*request), starts, 2)

    def _of_image(self, values: Tensor, rows: slice | Tensor, dim: int) -> Tensor:
        """The values of the generated image's queries, whose dimension is `dim`."""
        found = _rows(values, rows, dim)
        if self.shards is not None:
            found = self.shards.whole(found, dim)
        return found.narrow(dim, 0, self.info.picture_queries)  # those of reference images come last

    def _image_rows(self, arguments: AttentionArguments, starts: Tensor | None) -> slice | Tensor:
        """The queries of the image; their indices (B, queries) if they begin elsewhere in each sample."""
        if starts is not None:
            return starts[:, None] + torch.arange(self.info.picture_queries, device=starts.device)
        image, text_rows = rows_of(self.layer_call, self.info, self.shards)
        split = text_rows is not None and arguments.query.shape[-2] == image.stop - image.start
        return (
            slice(None) if split else image
        )  # the call is of the image's queries alone where the text's are split off

    def _refuse(self, reason: str) -> None:
        raise Unroutable(f"layer {self.layer_call.layer!r}", [reason])


def _of_own_text(found: Tensor, positions: Sequence[int], starts: Tensor, dim: int) -> Tensor:
    """NaN for positions of the text, along `dim`, that are behind the text of a sample: there its image begins."""
    at = torch.tensor(positions).to(starts.device, non_blocking=True)
    shape = [len(starts), *[1] * (found.dim() - 1)]
    shape[dim] = len(positions)
    return found.masked_fill((at >= starts[:, None]).reshape(shape), math.nan)


def _indices(tokens: Tokens, first: int | Tensor, picture: int, device: torch.device) -> slice | Tensor:
    """Where the tokens are, of a part that begins at `first`; `picture`: tokens of the generated image."""
    positions = tokens.positions
    if isinstance(first, Tensor):
        assert positions is None
        return first[:, None] + torch.arange(picture, device=device)
    if positions is None:
        assert tokens.part == "image"
        return slice(first, first + picture)
    if positions[-1] - positions[0] + 1 == len(positions):
        return slice(first + positions[0], first + positions[-1] + 1)
    return (torch.tensor(positions) + first).to(device, non_blocking=True)


def _rows(values: Tensor, rows: slice | Tensor, dim: int) -> Tensor:
    """The rows along `dim` of values (B, ...); rows (B, R) holds indices of each sample."""
    if isinstance(rows, slice):
        return values[(slice(None),) * dim + (rows,)]
    shape = [len(rows), *[1] * (values.ndim - 1)]
    shape[dim] = rows.shape[1]
    wanted = [*values.shape]
    wanted[dim] = rows.shape[1]
    return values.gather(dim, rows.reshape(shape).expand(wanted))
