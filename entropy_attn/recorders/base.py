"""The base class of recorders: what the router asks of one, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from entropy_attn.prompts import TextPart
from entropy_attn.scale import CallInfo


@dataclass(frozen=True, eq=False)
class Tokens:
    """Some of the queries or keys of a call.

    Attributes:
        part: "image" for the generated image's, without text and reference images; "text" for the text's.
        positions: indices within the part, sorted; None is all of it.
        weights: (groups, tokens) with a weight for each of these tokens: sums of them are taken in their place.
    """

    part: Literal["image", "text"]
    positions: tuple[int, ...] | None = None
    weights: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Probabilities:
    """A request for the probabilities of some keys for some queries, (B, heads or 1, rows, keys).

    Attributes:
        rows, keys: the queries and the keys.
        heads: each of these by itself; None is one mean over all heads.
    """

    rows: Tokens
    keys: Tokens
    heads: tuple[int, ...] | None = None


# "entropy" is (B, H, queries) in nats; a range (start, stop) of text positions is a map, (B, queries, stop - start).
# "response" is (B, H, queries, 3): the entropy, -dH / d ln(scale), and the variance of the row's logits. It costs two
# more calls of attention, and one covariance of the keys.
# "variance" is (B, H, queries, 2): the entropy, and the variance of the row's logits under its own softmax.
# In joint attention, where image and text both attend, the queries are those of the image alone.
Request = Literal["entropy", "response", "variance"] | tuple[int, int] | Probabilities | None

# A prompt is one text, or one text for each part where the parts differ.
Prompt = str | tuple[str, ...]


class UnknownParts(ValueError):
    """Which rows of a denoiser's batch belong to which branch is not known; says why, without a remedy."""


@dataclass(frozen=True)
class Parts:
    """The equal parts of a denoiser's batch, by name; none at all for a call that is not recorded.

    Attributes:
        names: the branches, in order.
        rows: the rows of the batch part after part, in each in the order of its images; None for rows in that order.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...] | None = None

    def rows_of(self, name: str, batch: int) -> Sequence[int]:
        """The rows of one part of a batch with this many rows."""
        each = batch // len(self.names)
        start = each * self.names.index(name)
        return (range(batch) if self.rows is None else self.rows)[start : start + each]

    def name_of(self, row: int, batch: int) -> str:
        """The part that a row belongs to."""
        return next(name for name in self.names if row in self.rows_of(name, batch))

    def names_of(self, batch: int) -> tuple[str, ...]:
        """The part of each row; "all" for a call that is not recorded."""
        names = ["all"] * batch
        for name in self.names:
            for row in self.rows_of(name, batch):
                names[row] = name
        return tuple(names)

    def sort(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch in the order of the parts."""
        return batch if self.rows is None else batch[list(self.rows)]


def unknown_rows(query: torch.Tensor, batch: int | None, names: Sequence[str]) -> str | None:
    """Why the rows of an attention call cannot be assigned to branches, and what to do; None if they can.

    A layer may turn windows of an image, or heads, into rows, or may be called for a part of the batch only.

    batch: rows of the denoiser's batch; None if the call is not for all of them.
    """
    if query.dim() != 4:
        return (
            f"its attention call has a query of shape {tuple(query.shape)}; recording expects (batch, heads, tokens, "
            "head_dim); record with the model's default processors, or apply without record"
        )
    if batch in (None, len(query)) or len(names) < 2:
        return None
    return (
        f"its attention call has {len(query)} rows and the denoiser's batch {batch}, so which rows belong to which of "
        f"{names} is not known; give the recorder branches=('all',) for one mean over all rows, or apply without record"
    )


class Recorder:
    """Base class of what `apply(record=...)` takes.

    A subclass needs `wants` and `record`. For each attention call the router calls `observe`, then `wants`; if that
    returns a request, the result is measured and given to `record`. Nothing that no recorder wants is computed.

    Args:
        branches: names of the equal parts of the denoiser's batch, in order, such as ("uncond", "cond"). None finds
            them out from the texts of the rows.

    Raises:
        TypeError: `branches` is neither None nor a tuple of strings.
        ValueError: `branches` is empty, or has a name twice.
    """

    def __init__(self, branches: tuple[str, ...] | None):
        if branches is not None:
            named = isinstance(branches, (tuple, list)) and all(isinstance(name, str) for name in branches)
            if not named:
                raise TypeError(f"branches: expected a tuple of names or None, got {branches!r}")
            branches = tuple(branches)
            if not branches or len(set(branches)) < len(branches):
                raise ValueError(f"branches: expected at least one name, each once, got {branches!r}")
        self.branches = branches

    def attach(self, parts: tuple[TextPart, ...]) -> None:
        """`apply` was called with this recorder.

        Args:
            parts: the parts of the text that layers attend to, one for each tokenizer; empty for a denoiser without
                a pipeline.
        """

    def begin(self, prompts: list[Prompt] | None) -> None:
        """A generation begins.

        Args:
            prompts: the prompts of the batch; None if the pipeline was given embeddings instead of text.
        """

    def observe(self, info: CallInfo, latent_size: tuple[int, int]) -> None:
        """Note an attention call before `wants` is asked about it. A recorder that keeps such notes overrides this.

        Args:
            info: the call.
            latent_size: (rows, columns) of the image in latent cells.
        """

    def wants(self, info: CallInfo, latent_size: tuple[int, int]) -> Request:
        """What to measure in this call; answers without changing the recorder.

        Args:
            info: the call.
            latent_size: (rows, columns) of the image in latent cells.

        Returns:
            "entropy", "response", "variance", a range (start, stop) of text positions for their map, `Probabilities`,
            or None for nothing.
        """
        raise NotImplementedError

    def record(
        self,
        info: CallInfo,
        scale: float | torch.Tensor,
        measured: torch.Tensor,
        branches: tuple[str, ...],
        latent_size: tuple[int, int],
    ) -> None:
        """Take in what was requested, without waiting for the device.

        Args:
            info: the call.
            scale: the softmax scale that was used, a number or a tensor of shape (), (H,) or (B, H).
            measured: the entropy (B, H, queries) in nats, the response (B, H, queries, 3), entropy and variance
                (B, H, queries, 2), the map (B, queries, stop - start) of probabilities averaged over the heads, or the
                `Probabilities` (B, heads or 1, rows, keys); float32, or float64 for float64 queries. In joint attention
                the queries are those of the image, except of `Probabilities`, which say theirs.
            branches: names of the equal parts of B, in order: those of this recorder, or those that were found out.
            latent_size: (rows, columns) of the image in latent cells.
        """
        raise NotImplementedError

    def check_call(self) -> None:
        """A call of the denoiser is over.

        Raises:
            ValueError: nothing in it fits what this recorder was made for, so no later call will either.
        """

    def _check_parts(self, info: CallInfo, batch: int, branches: tuple[str, ...]) -> None:
        """The branches divide the batch."""
        if batch % len(branches):
            raise ValueError(
                f"layer {info.layer!r} was called with a batch of {batch}, which is not {len(branches)} equal parts "
                f"{branches}: give {type(self).__name__}(branches=...) the parts it has, ('all',) for a single one"
            )
