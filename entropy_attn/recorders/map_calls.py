"""What a `MapRecorder` has seen of the calls, to say why there are no maps."""

from __future__ import annotations

from collections.abc import Collection

from entropy_attn.recorders.map_sums import MapSums
from entropy_attn.validation import Size


class SeenCalls:
    """The steps, text lengths and numbers of queries of the calls with text among their keys."""

    def __init__(self) -> None:
        self.steps: set[int] = set()
        self.lengths: set[int] = set()
        self.misfits: dict[int, Size] = {}  # numbers of queries that are no image of latents of this size

    def why_no_maps(self, steps: Collection[int] | None, size: Size | None, length: int | None, sums: MapSums) -> str:
        """The message for a recorder of these steps and size that holds no maps. length: positions of the text."""
        if not self.steps:
            return "no call with text among its keys was recorded: run the pipeline inside `with apply(record=...)`"
        if not self.lengths:
            return f"steps={sorted(steps or ())}: none of them was run; the last step was {max(self.steps)}"
        if not sums.layers and self.misfits:
            counts = ", ".join(map(str, sorted(self.misfits)))
            return (
                f"no layer with text among its keys has one query for each token of the image: there were {counts} "
                f"queries for latents of {next(iter(self.misfits.values()))}, as with merged or padded tokens and in "
                "video"
            )
        if not sums.layers:
            lengths = ", ".join(map(str, sorted(self.lengths)))
            return (
                f"no layer attended to the {length} positions of the text; they had {lengths} keys: give positions as "
                "tokens"
            )
        sizes = ", ".join(f"{size} ({len(layers)} layers)" for size, layers in sorted(sums.layers.items()))
        return f"size={size}: no layer of that size was called with text among its keys; there were {sizes}"
