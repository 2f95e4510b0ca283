"""The maps that a `LayerMapRecorder` holds: by layer, as tables, figures and files."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any, Literal

import torch

from entropy_attn.display import MAX_ROWS, table
from entropy_attn.recorders.generations import Generation
from entropy_attn.recorders.map_files import save_layer_maps
from entropy_attn.recorders.map_sums import RunningSum, mean_of
from entropy_attn.recorders.shown import NOTHING, as_frame, figures, thumbnail
from entropy_attn.recorders.text_choices import TextChoices
from entropy_attn.recorders.token_sides import Side
from entropy_attn.validation import Size, expected

EVERY_QUERY = "every query"  # the label of column sums


class RecordedLayerMaps:
    """The half of `LayerMapRecorder` that is read; the recorder fills in the attributes."""

    heads: Literal["each"] | tuple[int, ...] | None
    pattern: str | re.Pattern[str] | None
    steps: frozenset[int] | None
    _rows: Side
    _keys: Side
    _groups: Side  # the one of them that there is a map for each of
    _text: TextChoices
    _generation: Generation | None
    _sums: dict[tuple[str, int | None, str], RunningSum]  # (images, heads, words or regions, places)
    _grids: dict[str, Size]  # of the layers, in the order of the calls
    _missed: dict[str, str]  # why other layers have no map
    _seen_steps: set[int]

    def maps(self, picture: int = 0, *, step: int | None = None, branch: str | None = None) -> dict[str, torch.Tensor]:
        """The mean maps of one image.

        Args:
            picture: index of the image in the batch.
            step: one of `recorded_steps`; None is the mean over everything recorded.
            branch: one of `branch_names`. None is the guided half, "cond", of a guided batch, else the first branch.

        Returns:
            {layer: (head, word or region, row, column)}, float32 on the CPU: probabilities, or with rows and keys both
            "image" sums of them. The first dimension is 1 for the mean over heads, else one for each of `heads`; the
            second is that of `labels(picture)`. A branch that did not run at a step, because guidance was off then, is
            NaN there.

        Raises:
            ValueError: nothing was recorded, or an argument names something that was not.
        """
        self._require_recorded()
        self._check_picture(picture)
        branch = self._branch(branch)
        if step is not None and step not in self.recorded_steps:
            if self.steps is None:
                raise ValueError(f"step={step!r}: steps were not kept apart; give LayerMapRecorder(steps=...)")
            raise ValueError(f"step: expected one of {', '.join(map(str, self.recorded_steps))}, got {step!r}")
        return {layer: self._map(layer, picture, step, branch) for layer in self.layers}

    def labels(self, picture: int = 0) -> tuple[str, ...]:
        """What the maps of one image are of: words, positions of the text, or regions; words differ between prompts.

        Args:
            picture: index of the image in the batch.

        Returns:
            One label for each map; column sums have the label "every query".

        Raises:
            ValueError: nothing was recorded, or there is no such image.
        """
        self._check_picture(picture)
        if self._groups.kind == "image":
            return (EVERY_QUERY,)
        if self._groups.kind == "regions":
            return self._groups.labels
        return tuple(choice.label for choice in self._text.by_image(self._require_recorded().batch)[picture])

    @property
    def layers(self) -> tuple[str, ...]:
        """The recorded layers, in the order of the calls."""
        self._require_recorded()
        return tuple(layer for layer in self._grids if any(key[0] == layer for key in self._sums))

    @property
    def branch_names(self) -> tuple[str, ...]:
        """The parts of the batch that were kept."""
        self._require_recorded()
        return tuple(dict.fromkeys(branch for _, _, branch in self._sums))

    @property
    def recorded_steps(self) -> tuple[int, ...]:
        """The steps that are kept apart, of those in `steps`; empty with steps=None."""
        self._require_recorded()
        return tuple(sorted({step for _, step, _ in self._sums if step is not None}))

    def save(self, path: str | Path) -> Path:
        """Write the maps; with `steps`, those of each step by themselves.

        Args:
            path: ends in .npz for arrays, one for each layer, in .csv or .json for a table with a number in each row.

        Returns:
            The path.

        Raises:
            ValueError: nothing was recorded, the prompts differ in their numbers of words, or the path has another
                ending.
        """
        images = range(self._require_recorded().batch)
        labels = tuple(self.labels(image) for image in images)
        if len({len(each) for each in labels}) > 1:
            raise ValueError("the prompts have different numbers of words: choose words or positions")
        steps: list[int | None] = [None] if self.steps is None else list(self.recorded_steps)
        maps = {
            step: [[self.maps(image, step=step, branch=branch) for image in images] for branch in self.branch_names]
            for step in steps
        }
        found = {
            layer: {
                step: torch.stack([torch.stack([each[layer] for each in of_branch]) for of_branch in of_step]).numpy()
                for step, of_step in maps.items()
            }
            for layer in self.layers
        }
        return save_layer_maps(Path(path), found, self._head_names(), self.branch_names, labels)

    def summary(self) -> Any:
        """A pandas.DataFrame with how much attention each word or region has in each layer, and where most.

        Returns:
            One row for each layer, branch, image, head, and word or region. Columns: layer, branch, picture (index of
            the image), head (its number, or "mean"), token (the label), mean and max of the map, row and column of the
            highest, in tokens.

        Raises:
            ValueError: nothing was recorded.
            ModuleNotFoundError: pandas is not installed.
        """
        self._require_recorded()
        return as_frame([row for row, _ in self._summary_rows()])

    def plot(
        self,
        image: Any = None,
        *,
        picture: int = 0,
        branch: str | None = None,
        step: int | None = None,
        layers: str | None = None,
    ) -> Any:
        """Draw the maps: a row for each layer, mean over the recorded heads, and a column for each word or region.

        Each map has a color scale of its own, from 0 to its highest value, which is written below it. Points and boxes
        are marked.

        Args:
            image: the PIL image to lay them over; None draws the maps alone.
            picture: index of the image in the batch.
            branch: one of `branch_names`. None is the guided half, "cond", of a guided batch, else the first branch.
            step: one of `recorded_steps`; None is the mean over everything recorded.
            layers: a regular expression that is searched for in the names of layers; None draws all.

        Returns:
            A matplotlib figure outside pyplot's global state; a notebook shows it, `figure.savefig(path)` writes it.

        Raises:
            TypeError: `image` is no PIL image.
            ValueError: nothing was recorded, or an argument names something that was not.
            ModuleNotFoundError: matplotlib, pandas or diffusers is not installed.
        """
        if image is not None and not (hasattr(image, "convert") and hasattr(image, "size")):
            raise TypeError(expected("image", "a PIL image or None", image))
        found = {
            layer: maps.mean(0)
            for layer, maps in self.maps(picture, step=step, branch=branch).items()
            if layers is None or re.search(layers, layer)
        }
        if not found:
            raise ValueError(f"layers={layers!r}: matches none of the recorded layers, {', '.join(self.layers)}")
        regions = self._groups.regions
        marks = [None if isinstance(region, torch.Tensor) else region for region in regions] if regions else None
        return figures().layer_sheet(found, self.labels(picture), self._title(), image, marks)

    def _title(self) -> str:
        if self._groups.kind == "image":
            return "Attention that each place receives from the image"
        if self._keys.kind == "image":
            return "Where each of these attends in the image"
        return "Where the image attends to each of these"

    def _repr_html_(self) -> str:
        if not self._sums:
            return table(type(self).__name__, [], NOTHING)
        rows = []
        for row, values in itertools.islice(self._summary_rows(images=1), MAX_ROWS):
            rows.append({**row, "map": thumbnail(values)})
        images = self._require_recorded().batch
        which = "" if images == 1 else f"image 0 of {images}; "
        return table(type(self).__name__, rows, f"{len(self.layers)} layers; {which}colors from lowest to highest")

    def _summary_rows(self, images: int | None = None) -> Any:
        """Each row of the summary, with its map (row, column)."""
        images = self._require_recorded().batch if images is None else images
        for branch, image in itertools.product(self.branch_names, range(images)):
            for layer, maps in self.maps(image, branch=branch).items():
                names = itertools.product(self._head_names() or range(len(maps)), self.labels(image))
                for (head, label), values in zip(names, maps.flatten(0, 1), strict=True):
                    row, column = divmod(int(values.argmax()), values.shape[-1])
                    yield (
                        {
                            "layer": layer,
                            "branch": branch,
                            "picture": image,
                            "head": head,
                            "token": label,
                            "mean": float(values.mean()),
                            "max": float(values.max()),
                            "row": row,
                            "column": column,
                        },
                        values,
                    )

    def _head_names(self) -> tuple[int | str, ...] | None:
        """None for every head of a layer."""
        return None if self.heads == "each" else ("mean",) if self.heads is None else self.heads

    def _map(self, layer: str, picture: int, step: int | None, branch: str) -> torch.Tensor:
        of_layer = {key[1:]: sums for key, sums in self._sums.items() if key[0] == layer}
        held = [sums for (at, part), sums in of_layer.items() if part == branch and step in (None, at)]
        if not held:
            other = next(iter(of_layer.values())).total
            means = torch.full(other.shape, math.nan)[picture]
        else:
            means = mean_of(held)[picture].cpu()
        if self._groups.kind == "text":
            order = {position: at for at, position in enumerate(self._text.chosen())}
            choices = self._text.by_image(self._require_recorded().batch)[picture]
            words = [means[:, [order[position] for position in choice.positions]].mean(1) for choice in choices]
            means = torch.stack(words, dim=1)
        return means.unflatten(-1, self._grids[layer])

    def _branch(self, branch: str | None) -> str:
        names = self.branch_names
        if branch is None:
            return "cond" if "cond" in names else names[0]
        if branch not in names:
            raise ValueError(f"branch: expected one of {names}, which were recorded, got {branch!r}")
        return branch

    def _check_picture(self, picture: int) -> None:
        images = self._require_recorded().batch
        if isinstance(picture, bool) or not isinstance(picture, int) or not 0 <= picture < images:
            raise ValueError(f"picture: expected an integer from 0 to {images - 1}, got {picture!r}")

    def _require_recorded(self) -> Generation:
        if self._generation is None or not self._sums:
            raise ValueError(self._why_no_maps())
        return self._generation

    def _why_no_maps(self) -> str:
        if not self._seen_steps:
            return "no attention was recorded: run the pipeline inside `with apply(record=...)`"
        if self.steps is not None and not self._seen_steps & self.steps:
            return f"steps={sorted(self.steps)}: none of them was run; the last step was {max(self._seen_steps)}"
        if not self._missed:
            return f"layers={self.pattern!r}: matches none of the layers that were called"
        reasons: dict[str, list[str]] = {}
        for layer, why in self._missed.items():
            reasons.setdefault(why, []).append(layer)
        listed = "; ".join(f"{names[0]!r} and {len(names) - 1} more: {why}" for why, names in reasons.items())
        return f"rows={self._rows.given!r}, keys={self._keys.given!r}: no layer has both: {listed}"
