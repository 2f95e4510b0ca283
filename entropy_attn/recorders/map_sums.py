"""Running sums of maps by size and step, and the choice of the size. Nothing here waits for the device."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from entropy_attn.validation import Size


@dataclass
class _Sum:
    """Maps added up, (pictures, tokens of the picture, text positions), and how many they were."""

    total: torch.Tensor
    calls: int = 0


def preferred_size(layers: Mapping[Size, Collection[str]], latent_size: Size) -> Size:
    """Of the sizes that most layers have, the one nearest to a quarter of the latent's sides."""
    most = max(map(len, layers.values()))
    sizes = [size for size, names in layers.items() if len(names) == most]
    return min(sizes, key=lambda size: abs(math.log(16 * math.prod(size) / math.prod(latent_size))))


class MapSums:
    """One sum a size and branch, and step where `apart`; `size=None` is `preferred_size` once a step was seen."""

    def __init__(self, size: Size | None, apart: bool):
        self.apart = apart
        self.held: dict[tuple[Size, int | None, str], _Sum] = {}
        self.layers: dict[Size, set[str]] = defaultdict(set)  # all that were called, whether wanted or not
        self._settled = size
        self._first_step: int | None = None

    def __bool__(self) -> bool:
        return bool(self.held)

    def wants(self, layer: str, size: Size, step: int, latent_size: Size) -> bool:
        """Whether a call of this layer is to be added."""
        if self._first_step is None:
            self._first_step = step
        if self._settled is None and self.layers and step != self._first_step:
            self._settled = self.size(latent_size)
            self.held = {key: held for key, held in self.held.items() if key[0] == self._settled}
        self.layers[size].add(layer)
        return self._settled in (None, size)

    def add(self, size: Size, step: int, branch: str, maps: torch.Tensor) -> None:
        key = (size, step if self.apart else None, branch)
        if key not in self.held:
            with torch.inference_mode(False):  # or a later generation outside of it could not be added
                self.held[key] = _Sum(torch.zeros(maps.shape, dtype=torch.float32, device=maps.device))
        held = self.held[key]
        held.total.add_(maps.to(held.total.device, non_blocking=True))
        held.calls += 1

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
        """Over all calls of this size; of one step where that is given. Branches come first."""
        if step is not None and not self.apart:
            raise ValueError(f"step={step!r}: steps were not kept apart; give MapRecorder(steps=...)")
        if step is not None and step not in self.steps(size):
            raise ValueError(f"step={step!r}: recorded were {', '.join(map(str, self.steps(size)))}")
        return torch.stack([self._mean(size, step, branch) for branch in self.branches()])

    def _mean(self, size: Size, step: int | None, branch: str) -> torch.Tensor:
        found = [
            held for (at, of, own), held in self.held.items() if at == size and step in (None, of) and own == branch
        ]
        if not found:  # guidance was off at this step
            other = next(held for (at, _, _), held in self.held.items() if at == size)
            return torch.full_like(other.total, math.nan)
        total = found[0].total if len(found) == 1 else torch.stack([held.total for held in found]).sum(0)
        return total / sum(held.calls for held in found)
