"""Running sums of maps by size and step, and the choice of the size. Nothing here waits for the device."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch

from entropy_attn.validation import Size


class RunningSum:
    """The sum `total` of `calls` tensors of one shape, on the device of the first."""

    def __init__(self, first: torch.Tensor):
        with torch.inference_mode(False):  # or a later generation outside of it could not be added
            self.total = torch.zeros(first.shape, dtype=torch.float32, device=first.device)
        self.calls = 0
        self.add(first)

    def add(self, values: torch.Tensor) -> None:
        """Add one more, without waiting for the device."""
        self.total.add_(values.to(self.total.device, non_blocking=True))
        self.calls += 1


def mean_of(sums: Sequence[RunningSum]) -> torch.Tensor:
    """The mean of all that was added to any of them."""
    total = sums[0].total if len(sums) == 1 else torch.stack([held.total for held in sums]).sum(0)
    return total / sum(held.calls for held in sums)


def preferred_size(layers: Mapping[Size, Collection[str]], latent_size: Size, least: int = 1) -> Size:
    """Of the sizes that most layers have, the one nearest to a quarter of the latent's sides, or to `least` tokens."""
    most = max(map(len, layers.values()))
    sizes = [size for size, names in layers.items() if len(names) == most]
    tokens = max(math.prod(latent_size) / 16, least)
    return min(sizes, key=lambda size: abs(math.log(math.prod(size) / tokens)))


class MapSums:
    """One sum for each size and branch, and for each step if `apart`.

    With `size=None` every size is kept in the first step; then `preferred_size` is settled and the others are dropped.
    """

    def __init__(self, size: Size | None, apart: bool):
        self.apart = apart
        self.held: dict[tuple[Size, int | None, str], RunningSum] = {}
        self.layers: dict[Size, set[str]] = defaultdict(set)  # all that were called, of any size
        self._settled = size
        self._first_step: int | None = None

    def __bool__(self) -> bool:
        return bool(self.held)

    def observe(self, layer: str, size: Size, step: int, latent_size: Size) -> None:
        """Note a layer and its size; the second step settles the size."""
        if self._first_step is None:
            self._first_step = step
        if self._settled is None and self.layers and step != self._first_step:
            self._settled = self.size(latent_size)
            self.held = {key: held for key, held in self.held.items() if key[0] == self._settled}
        self.layers[size].add(layer)

    def wants(self, size: Size) -> bool:
        """Whether maps of this size are added."""
        return self._settled in (None, size)

    def add(self, size: Size, step: int, branch: str, maps: torch.Tensor) -> None:
        """Add the maps (images, image tokens, text positions) of one call."""
        key = (size, step if self.apart else None, branch)
        if key in self.held:
            self.held[key].add(maps)
        else:
            self.held[key] = RunningSum(maps)

    def size(self, latent_size: Size) -> Size:
        """The size whose maps are read."""
        if self._settled is not None:
            return self._settled
        return preferred_size(self.layers, latent_size)

    def steps(self, size: Size) -> tuple[int, ...]:
        """The steps that are kept apart."""
        return tuple(sorted({step for at, step, _ in self.held if at == size and step is not None}))

    def branches(self) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(dict.fromkeys(branch for _, _, branch in self.held))

    def mean(self, size: Size, step: int | None) -> torch.Tensor:
        """Mean over the calls of this size, of one step if that is given: (branch, image, image token, position)."""
        if step is not None and not self.apart:
            raise ValueError(f"step={step!r}: steps were not kept apart; give MapRecorder(steps=...)")
        if step is not None and step not in self.steps(size):
            raise ValueError(f"step: expected one of {', '.join(map(str, self.steps(size)))}, got {step!r}")
        return torch.stack([self._mean(size, step, branch) for branch in self.branches()])

    def _mean(self, size: Size, step: int | None, branch: str) -> torch.Tensor:
        found = [
            held for (at, of, name), held in self.held.items() if at == size and step in (None, of) and name == branch
        ]
        if not found:  # guidance was off at this step
            other = next(held for (at, _, _), held in self.held.items() if at == size)
            return torch.full_like(other.total, math.nan)
        return mean_of(found)
