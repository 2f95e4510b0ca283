"""What a recorder is to the router: it says what it wants of a call, and is handed that. Nothing here measures."""

from __future__ import annotations

from typing import Literal

import torch

from .scale import CallInfo
from .tokens import TextPart

# "entropy" is (batch, heads, queries); a range (start, stop) of the text is its map, (batch, queries, stop - start).
# The queries are those of the picture alone where both attend, in joint attention.
Wish = Literal["entropy"] | tuple[int, int] | None

# One for each part of the text, where they differ.
Prompt = str | tuple[str, ...]


class Recorder:
    """Base of what `apply(record=...)` takes.

    branches: names of the equal parts that the denoiser's batch consists of, in order; None asks the pipeline.
    """

    def __init__(self, branches: tuple[str, ...] | None):
        if branches is not None:
            if isinstance(branches, str) or not all(isinstance(name, str) for name in branches):
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
        """Take in what was wanted. `branches` names the parts of this batch: the recorder's own, or the pipeline's."""
        raise NotImplementedError

    def _check_parts(self, info: CallInfo, batch: int, branches: tuple[str, ...]) -> None:
        """The branches divide the batch."""
        if batch % len(branches):
            raise ValueError(
                f"layer {info.layer!r} was called with a batch of {batch}, which is not {len(branches)} equal parts "
                f"{branches}: give {type(self).__name__}(branches=...) the parts it has, ('all',) for a single one"
            )
