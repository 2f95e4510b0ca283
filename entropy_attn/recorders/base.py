"""What a recorder is to the router: it says what it wants of a call, and is handed that. Nothing here measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from entropy_attn.prompts import TextPart
from entropy_attn.scale import CallInfo

# "entropy" is (batch, heads, queries); a range (start, stop) of the text is its map, (batch, queries, stop - start).
# The queries are those of the picture alone where both attend, in joint attention.
Wish = Literal["entropy"] | tuple[int, int] | None

# One for each part of the text, where they differ.
Prompt = str | tuple[str, ...]


class UnknownParts(ValueError):
    """Which rows of a denoiser's batch are of which branch is not known; says why, without a remedy."""


@dataclass(frozen=True)
class Parts:
    """The equal parts of a denoiser's batch, by their names; none at all for a call that is not to be recorded.

    rows: the rows of the batch part after part, in each in the order of its pictures; None is the order that they have.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...] | None = None

    def rows_of(self, name: str, batch: int) -> Sequence[int]:
        """The rows of one part, of so many in all."""
        each = batch // len(self.names)
        start = each * self.names.index(name)
        return (range(batch) if self.rows is None else self.rows)[start : start + each]

    def name_of(self, row: int, batch: int) -> str:
        """The part that a row is of."""
        return next(name for name in self.names if row in self.rows_of(name, batch))

    def sort(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch in the order of the parts."""
        return batch if self.rows is None else batch[list(self.rows)]


def unknown_rows(query: torch.Tensor, batch: int | None, names: Sequence[str]) -> str | None:
    """Why it is not known which rows of an attention call are of which branch, and what to do; None where it is.

    Windows of a picture, or heads, may have been made rows; a layer may be called for a part of the batch only.

    batch: rows of the denoiser's batch; None where the call is not of all of them.
    """
    if query.dim() != 4:
        return (
            f"its attention call has a query of shape {tuple(query.shape)}, not (batch, heads, tokens, head_dim), as "
            "recording needs it; record with the model's own processors, or apply without record"
        )
    if batch in (None, len(query)) or len(names) < 2:
        return None
    return (
        f"its attention call has {len(query)} rows and the denoiser's batch {batch}: which of them are of which of "
        f"{names} is not known; give the recorder branches=('all',) for one mean of them, or apply without record"
    )


class Recorder:
    """Base of what `apply(record=...)` takes.

    branches: names of the equal parts that the denoiser's batch consists of, in order; None finds them out, by the
        texts of its rows.
    """

    def __init__(self, branches: tuple[str, ...] | None):
        if branches is not None:
            named = isinstance(branches, (tuple, list)) and all(isinstance(name, str) for name in branches)
            if not named:
                raise TypeError(f"branches={branches!r}: a tuple of names or None is needed")
            branches = tuple(branches)
            if not branches or len(set(branches)) < len(branches):
                raise ValueError(f"branches={branches!r}: at least one name, each once, is needed")
        self.branches = branches

    def attach(self, parts: tuple[TextPart, ...]) -> None:
        """Routing begins. `parts` are of the text that layers attend to; a denoiser alone does not know of any."""

    def begin(self, prompts: list[Prompt] | None) -> None:
        """A generation begins; None for prompts that the pipeline was not given as text."""

    def wants(self, info: CallInfo, latent_size: tuple[int, int]) -> Wish:
        """What is to be measured in this call."""
        raise NotImplementedError

    def record(
        self,
        info: CallInfo,
        scale: float | torch.Tensor,
        measured: torch.Tensor,
        branches: tuple[str, ...],
        latent_size: tuple[int, int],
    ) -> None:
        """Take in what was wanted. `branches` names the parts of this batch: the recorder's own, or those found out."""
        raise NotImplementedError

    def check_call(self) -> None:
        """A call of the denoiser is over; raises where nothing of it, and so of none, fits what was asked for."""

    def _check_parts(self, info: CallInfo, batch: int, branches: tuple[str, ...]) -> None:
        """The branches divide the batch."""
        if batch % len(branches):
            raise ValueError(
                f"layer {info.layer!r} was called with a batch of {batch}, which is not {len(branches)} equal parts "
                f"{branches}: give {type(self).__name__}(branches=...) the parts it has, ('all',) for a single one"
            )
