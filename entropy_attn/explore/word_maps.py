"""Word maps for the page: from a recorder, or from a file that `maps --csv` or `MapRecorder.save` wrote."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from entropy_attn.recorders.map_files import COLUMNS

MEAN = "mean"


@dataclass(frozen=True)
class WordMaps:
    """The attention of one image to the words of its prompt.

    Attributes:
        title: what the maps are of, for the heading.
        words: a label for each word.
        maps: {step, or "mean" of the steps: array (words, rows, columns)}, probabilities.
        facts: {name: value}, for the list below the heading.
        image: the generated PIL image; None if it is not known.

    Raises:
        ValueError: there is no map, or one has another shape or a value that is not finite.
    """

    title: str
    words: Sequence[str]
    maps: Mapping[str, np.ndarray]
    facts: Mapping[str, str] = field(default_factory=dict)
    image: Any = None

    def __post_init__(self) -> None:
        if not self.maps or not len(self.words):
            raise ValueError(f"maps: expected at least one map of one word, got {len(self.maps)}, words {self.words!r}")
        first = next(iter(self.maps.values())).shape
        for step, values in self.maps.items():
            if values.ndim != 3 or len(values) != len(self.words) or values.shape != first or 0 in values.shape:
                raise ValueError(
                    f"maps: expected ({len(self.words)}, rows, columns), the same at each step, "
                    f"got {values.shape} at {step}"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"maps: expected finite values, got NaN or infinity at {step}")

    def __repr__(self) -> str:
        words, rows, columns = next(iter(self.maps.values())).shape
        return f"<WordMaps: {self.title}, {words} words of {rows}x{columns} tokens, steps {', '.join(self.maps)}>"

    def _repr_png_(self) -> bytes:
        from entropy_attn.explore.needs import require

        require()
        from entropy_attn.explore.page import still
        from entropy_attn.explore.word_views import words_section

        return still(words_section(self))


def read_maps(path: Path, argument: str = "RUN") -> list[WordMaps]:
    """The maps of a .csv or .npz file, those of each image by themselves; of several branches, "cond".

    Raises:
        ValueError: the file does not have them; the message begins with `argument`.
    """
    if not path.is_file():
        raise ValueError(f"{argument}: expected a file of maps, got {str(path)!r}, which is none")
    try:
        arrays, branches, tokens = _npz(path) if path.suffix.lower() == ".npz" else _csv(path)
    except (KeyError, IndexError, zipfile.BadZipFile, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{argument}: expected maps as MapRecorder.save writes them, got {str(path)!r}") from error
    except ValueError as error:
        raise ValueError(f"{argument}: {str(path)!r}: {error}") from error
    if "cond" not in branches and len(branches) > 1:
        raise ValueError(f"{argument}: expected the branch 'cond' in {str(path)!r}, got {branches}")
    branch = branches.index("cond") if "cond" in branches else 0
    found = []
    for image, words in enumerate(tokens):
        maps = {step: values[branch, image] for step, values in arrays.items()}
        kept = {step: values for step, values in maps.items() if np.isfinite(values).all()}
        if not kept:
            raise ValueError(f"{argument}: expected finite maps in {str(path)!r}, got none of image {image}")
        facts = {"file": path.name, "image": str(image), "branch": branches[branch]}
        left = [step for step in maps if step not in kept]
        if left:
            facts["left out"] = f"steps at which this branch did not run: {', '.join(left)}"
        found.append(WordMaps(f"Attention to each word, {path.name}", words, kept, facts))
    return found


Read = tuple[dict[str, np.ndarray], list[str], list[list[str]]]  # {step: (branch, image, word, row, column)}, …


def _npz(path: Path) -> Read:
    with np.load(path) as file:
        maps, branches, tokens = file["maps"], file["branches"].tolist(), file["tokens"].tolist()
        steps = [str(step) for step in file["steps"]] if "steps" in file else [MEAN]
    maps = maps if maps.ndim == 6 else maps[None]
    if maps.ndim != 6 or maps.shape[:3] != (len(steps), len(branches), len(tokens)):
        raise ValueError(f"expected maps (steps, branch, image, token, row, column), got {maps.shape}")
    return dict(zip(steps, maps, strict=True)), branches, tokens


def _csv(path: Path) -> Read:
    """Words are told apart by their place, because a prompt can have a word twice."""
    names = dict.fromkeys(("step", "branch", "token"), str)
    table = pd.read_csv(path, dtype=names, keep_default_na=False, na_values={"attention": ["", "nan"]})
    if list(table.columns) != list(COLUMNS):
        raise ValueError(f"expected the columns {','.join(COLUMNS)}, got {','.join(map(str, table.columns))}")
    if table.empty:
        raise ValueError("expected at least one row, got none")
    steps, branches = (table[name].drop_duplicates().tolist() for name in ("step", "branch"))
    images = int(table["picture"].max()) + 1
    shape = (len(steps), len(branches), images, -1, int(table["row"].max()) + 1, int(table["column"].max()) + 1)
    maps = table["attention"].to_numpy(np.float64).reshape(shape)  # a ValueError for rows that are missing
    order = np.stack(np.unravel_index(np.arange(maps.size), maps.shape))[[2, 4, 5]]
    if (order != table[["picture", "row", "column"]].to_numpy().T).any():
        raise ValueError("expected the rows in the order step, branch, picture, token, row, column")
    labels = table["token"].to_numpy().reshape(maps.shape)[0, 0, :, :, 0, 0].tolist()
    return dict(zip(steps, maps, strict=True)), branches, labels
