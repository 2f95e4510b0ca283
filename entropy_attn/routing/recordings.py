"""What the recorders request of one attention call, and what they are given of its result."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from entropy_attn.errors import Unroutable
from entropy_attn.ops.api import AttentionOutput
from entropy_attn.recorders.base import Parts, Recorder, unknown_rows
from entropy_attn.routing.calls import AttentionArguments, DenoiserCall, LayerCall, rows_of
from entropy_attn.routing.shards import Shards
from entropy_attn.scale import CallInfo

Wanted = Literal["entropy", "response", "variance"] | tuple[int, int]


@dataclass(frozen=True)
class Recordings:
    """The requests of the recorders for one attention call, at least one.

    Attributes:
        layer_call, info: the call.
        denoiser_call: the pass of the denoiser that the call belongs to.
        recordable: False for a layer that is called outside of a pass. The requests are computed all the same, because
            gradient checkpointing has to recompute what the first call computed, but they are not recorded.
        requests: each recorder with its request.
        shards: how the queries are spread over devices. Recorders get those of all devices, on every device.
    """

    layer_call: LayerCall
    info: CallInfo
    denoiser_call: DenoiserCall
    recordable: bool
    requests: tuple[tuple[Recorder, Wanted], ...]
    shards: Shards | None = None

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
        batch = None if self.layer_call.sample is not None else self.denoiser_call.batch
        for recorder, _ in self.requests:
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

    def give(self, result: AttentionOutput, response: Tensor | None, arguments: AttentionArguments) -> None:
        """Give every recorder what it requested. The queries are all rows of the call, or those of the image alone.

        response: (B, H, Nq, 2), see `ops.response`; None if it was not requested.
        """
        if not self.recordable:
            return
        scale: float | Tensor = self.info.head_dim**-0.5 if arguments.scale is None else arguments.scale
        rows = self._image_rows(arguments)
        for recorder, request in self.requests:
            measured = self._measured(result, response, request, rows)
            parts = self.denoiser_call.parts if recorder.branches is None else Parts(recorder.branches)
            if self.layer_call.sample is None:
                measured, branches = parts.sort(measured), parts.names
            else:
                branches = (parts.name_of(self.layer_call.sample, self.layer_call.samples),)
            of_rows = isinstance(scale, Tensor) and scale.dim() == 2 and self.layer_call.sample is None
            used = parts.sort(scale) if of_rows else scale  # type: ignore[arg-type]
            recorder.record(self.info, used, measured, branches, self.denoiser_call.latent_size)

    def _measured(
        self, result: AttentionOutput, response: Tensor | None, request: Wanted, rows: slice | Tensor
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
        return self._of_image(result.map[..., request[0] - first : request[1] - first], rows, 1)

    def _of_image(self, values: Tensor, rows: slice | Tensor, dim: int) -> Tensor:
        """The values of the generated image's queries, whose dimension is `dim`."""
        found = _rows(values, rows, dim)
        if self.shards is not None:
            found = self.shards.whole(found, dim)
        return found.narrow(dim, 0, self.info.picture_queries)  # those of reference images come last

    def _image_rows(self, arguments: AttentionArguments) -> slice | Tensor:
        """The queries of the image; their indices (B, queries) if they begin elsewhere in each sample."""
        mask = arguments.attn_mask
        if self.layer_call.ragged and mask is not None:  # without a mask, all texts have the same length
            # The image follows its text, and what is masked follows the image. Nothing here waits for the device.
            queries = self.info.picture_queries
            text = mask.expand(len(arguments.query), 1, 1, -1).flatten(1).sum(1) - queries
            return text[:, None] + torch.arange(queries, device=text.device)
        image, text_rows = rows_of(self.layer_call, self.info, self.shards)
        split = text_rows is not None and arguments.query.shape[-2] == image.stop - image.start
        return (
            slice(None) if split else image
        )  # the call is of the image's queries alone where the text's are split off

    def _refuse(self, reason: str) -> None:
        raise Unroutable(f"layer {self.layer_call.layer!r}", [reason])


def _rows(values: Tensor, rows: slice | Tensor, dim: int) -> Tensor:
    """The rows along `dim` of values (B, ...); rows (B, R) holds indices of each sample."""
    if isinstance(rows, slice):
        return values[(slice(None),) * dim + (rows,)]
    shape = [len(rows), *[1] * (values.ndim - 1)]
    shape[dim] = rows.shape[1]
    wanted = [*values.shape]
    wanted[dim] = rows.shape[1]
    return values.gather(dim, rows.reshape(shape).expand(wanted))
