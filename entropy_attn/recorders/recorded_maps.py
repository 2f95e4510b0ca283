"""The maps that a `MapRecorder` holds: means, labels, heat maps, overlays, files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from entropy_attn.display import MAX_ROWS, table
from entropy_attn.recorders import overlay as heat
from entropy_attn.recorders.generations import Generation
from entropy_attn.recorders.map_calls import SeenCalls
from entropy_attn.recorders.map_files import save_maps
from entropy_attn.recorders.map_sums import MapSums
from entropy_attn.recorders.shown import NOTHING, as_frame, figures, thumbnail
from entropy_attn.recorders.text_choices import TextChoices
from entropy_attn.validation import Size, expected


class RecordedMaps:
    """The half of `MapRecorder` that is read; the recorder fills in the attributes."""

    size: Size | None
    steps: frozenset[int] | None
    _text: TextChoices
    _sums: MapSums
    _seen: SeenCalls
    _generation: Generation | None

    def maps(self, step: int | None = None) -> torch.Tensor:
        """The mean maps, on the device they were recorded on.

        Args:
            step: one of `recorded_steps`; None is the mean over everything recorded.

        Returns:
            (branch, image, token, row, column) in float32, probabilities. `branch_names` names the branches, `tokens`
            the tokens. A branch that did not run at a step, because guidance was off then, is NaN there.

        Raises:
            ValueError: nothing was recorded, or nothing at this step, or the prompts differ in their numbers of tokens.
        """
        means = self._means(step)
        images = [self._of_image(means, image) for image in range(means.shape[1])]
        if len({found.shape for found in images}) > 1:
            raise ValueError(
                "the prompts have different numbers of tokens: choose words or positions with tokens=..., or read one "
                "image with heat_map(token, picture=...)"
            )
        return torch.stack(images, dim=1)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The label of every token of `maps()`: the word, or the position if the prompt is not known."""
        return self.labels(0)

    def labels(self, picture: int = 0) -> tuple[str, ...]:
        """The labels of one image's tokens; with tokens=None they differ between prompts.

        Args:
            picture: index of the image in the batch.

        Returns:
            One label for each token.

        Raises:
            ValueError: nothing was recorded, or there is no such image.
        """
        choices = self._text.by_image(self._require_recorded().batch)
        if not 0 <= picture < len(choices):
            raise ValueError(f"picture: expected an integer from 0 to {len(choices) - 1}, got {picture!r}")
        return tuple(choice.label for choice in choices[picture])

    @property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """The text positions that each of `tokens` averages, in the first image."""
        self._require_recorded()
        return tuple(choice.positions for choice in self._text.by_image(len(self._text))[0])

    @property
    def branch_names(self) -> tuple[str, ...]:
        """The parts of the batch that were kept, in the order of `maps()`."""
        self._require_recorded()
        return self._sums.branches()

    @property
    def map_size(self) -> Size:
        """(rows, columns) of the maps."""
        return self._sums.size(self._require_recorded().latent_size)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that were averaged."""
        return tuple(sorted(self._sums.layers[self.map_size]))

    @property
    def recorded_steps(self) -> tuple[int, ...]:
        """The steps that are kept apart, of those in `steps`; empty with steps=None."""
        self._require_recorded()
        return self._sums.steps(self.map_size)

    def heat_map(
        self,
        token: str | int,
        size: Size | None = None,
        *,
        picture: int = 0,
        branch: str | None = None,
        step: int | None = None,
        mode: str = "bicubic",
    ) -> torch.Tensor:
        """One token's map.

        Args:
            token: a label of `labels(picture)`, or its index among them.
            size: (height, width) to enlarge the map to, such as an image's; None leaves it at `map_size`.
            picture: index of the image in the batch.
            branch: one of `branch_names`. None is the guided half, "cond", of a guided batch, else the first branch.
            step: one of `recorded_steps`; None is the mean over everything recorded.
            mode: "bicubic", "bilinear" or "nearest" interpolation. The result stays within the map's range of values.

        Returns:
            (height, width) in float32, probabilities, on the device of the maps.

        Raises:
            ValueError: nothing was recorded, or an argument names something that was not.
        """
        index, names = _index_of(token, self.labels(picture)), self.branch_names
        if branch is None:
            branch = "cond" if "cond" in names else names[0]
        elif branch not in names:
            raise ValueError(f"branch: expected one of {names}, which were recorded, got {branch!r}")
        found = self._of_image(self._means(step), picture)[names.index(branch), index]
        return found if size is None else heat.enlarge(found, size, mode)

    def overlay(
        self,
        image: Any,
        token: str | int,
        *,
        limits: tuple[float, float] | None = None,
        strength: float = 0.65,
        **options: Any,
    ) -> Any:
        """One token's map in color over a PIL image.

        Args:
            image: the PIL image; it is not changed.
            token: a label of `labels(picture)`, or its index among them.
            limits: the probabilities that are shown darkest and brightest; None is the map's lowest and highest.
            strength: 0 is the image alone, 1 the map alone.
            **options: picture, branch, step and mode of `heat_map`.

        Returns:
            A new PIL image of the same size.

        Raises:
            ValueError: as `heat_map`, or limits or strength are out of range.
        """
        found = self.heat_map(token, (image.height, image.width), **options)
        return heat.overlay(image, found, limits=limits, strength=strength)

    def save(self, path: str | Path) -> Path:
        """Write the maps; with `steps`, those of each step by themselves.

        Args:
            path: ends in .npz for arrays (maps, branches, tokens, steps), in .csv or .json for a table.

        Returns:
            The path.

        Raises:
            ValueError: nothing was recorded, or the path has another ending.
        """
        tokens = tuple(self.labels(image) for image in range(self._require_recorded().batch))
        steps = [None] if self.steps is None else list(self.recorded_steps)
        return save_maps(Path(path), {step: self.maps(step).cpu().numpy() for step in steps}, self.branch_names, tokens)

    def summary(self) -> Any:
        """A pandas.DataFrame with how much attention each word gets, and where it gets most.

        Returns:
            One row for each branch, image and word. Columns: branch, picture (index of the image), token, positions of
            the text, mean and max (probabilities), row and column of the highest, in tokens.

        Raises:
            ValueError: nothing was recorded.
            ModuleNotFoundError: pandas is not installed.
        """
        return as_frame(self._rows())

    def plot(self, image: Any = None, *, picture: int = 0, branch: str | None = None) -> Any:
        """Draw the map of each word, and with `steps` that of each step in a row of its own.

        Args:
            image: the PIL image to lay them over; None draws the maps alone.
            picture: index of the image in the batch.
            branch: one of `branch_names`. None is the guided half, "cond", of a guided batch, else the first branch.

        Returns:
            A matplotlib figure outside pyplot's global state; a notebook shows it, `figure.savefig(path)` writes it.

        Raises:
            TypeError: `image` is no PIL image.
            ValueError: nothing was recorded, or `picture` or `branch` names something that was not.
            ModuleNotFoundError: matplotlib, pandas or diffusers is not installed.
        """
        if image is not None and not (hasattr(image, "convert") and hasattr(image, "size")):
            raise TypeError(expected("image", "a PIL image or None", image))
        labels = self.labels(picture)
        apart = [None] if self.steps is None else list(self.recorded_steps)
        rows = {
            "mean" if step is None else f"step {step}": torch.stack(
                [self.heat_map(at, picture=picture, branch=branch, step=step) for at in range(len(labels))]
            )
            for step in apart
        }
        return figures().maps_of_words(rows, labels, image)

    def _repr_html_(self) -> str:
        if not self._sums:
            return table(type(self).__name__, [], NOTHING)
        shown = [row for row in self._rows() if row["picture"] == 0]
        words = itertools.product(self.branch_names, range(len(self.labels(0))))
        for row, (branch, word) in zip(shown[:MAX_ROWS], words, strict=False):
            row["map"] = thumbnail(self.heat_map(word, branch=branch))
        (height, width), images = self.map_size, self._require_recorded().batch
        which = "" if images == 1 else f"image 0 of {images}; "
        note = f"{len(self.layers)} layers of {height}x{width} tokens; {which}colors from lowest to highest"
        return table(type(self).__name__, shown, note)

    def _rows(self) -> list[dict[str, Any]]:
        means = self._means(None)
        choices = self._text.by_image(means.shape[1])
        rows = []
        for image, words in enumerate(choices):
            of_image = self._of_image(means, image).cpu()
            for branch, maps in zip(self.branch_names, of_image, strict=True):
                for word, values in zip(words, maps, strict=True):
                    row, column = divmod(int(values.argmax()), values.shape[-1])
                    rows.append(
                        {
                            "branch": branch,
                            "picture": image,
                            "token": word.label,
                            "positions": word.positions,
                            "mean": float(values.mean()),
                            "max": float(values.max()),
                            "row": row,
                            "column": column,
                        }
                    )
        return rows

    def _means(self, step: int | None) -> torch.Tensor:
        return self._sums.mean(self.map_size, step)

    def _of_image(self, means: torch.Tensor, image: int) -> torch.Tensor:
        """(branch, token, row, column) of one image."""
        return self._text.of_image(means, image).unflatten(-1, self.map_size)

    def _require_recorded(self) -> Generation:
        if self._generation is None or not self._sums:
            raise ValueError(self._seen.why_no_maps(self.steps, self.size, self._text.length, self._sums))
        return self._generation


def _index_of(token: str | int, labels: tuple[str, ...]) -> int:
    if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < len(labels):
        return token
    indices = [index for index, label in enumerate(labels) if label == token]
    if len(indices) == 1:
        return indices[0]
    if indices:
        raise ValueError(
            f"token: expected a label that is there once, got {token!r}; give one of its indices {indices}"
        )
    raise ValueError(f"token: expected one of {labels}, or an index into them, got {token!r}")
