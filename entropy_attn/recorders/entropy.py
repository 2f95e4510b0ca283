"""Attention entropy by layer, head and step, kept on the device until it is read."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from entropy_attn.display import table
from entropy_attn.recorders.base import Recorder, Request
from entropy_attn.recorders.shown import NOTHING, as_frame, by_layer, figures
from entropy_attn.recorders.transfer import kept_scale, scales_of, to_host
from entropy_attn.scale import CallInfo, token_grid
from entropy_attn.table_files import write_table
from entropy_attn.validation import require_bool

COLUMNS = (
    "layer",
    "kind",
    "step",
    "branch",
    "head",
    "seqlen_q",
    "seqlen_k",
    "scale",
    "mean",
    "std",
    "min",
    "max",
)
_STATISTICS = 4  # mean, std, min, max


_grid = functools.lru_cache(maxsize=1024)(token_grid)  # the same few in every call


@dataclass(frozen=True)
class _Record:
    """One attention call. Its tensors stay on the device of the call."""

    info: CallInfo
    branches: tuple[str, ...]
    scale: float | torch.Tensor  # (), (heads,) or (branches, heads)
    statistics: torch.Tensor  # (4, branches, heads)
    queries: int  # that were measured: in joint attention, those of the image
    per_query: torch.Tensor | None  # (branches, images, queries), mean over heads
    grid: tuple[int, int]


class EntropyRecorder(Recorder):
    """Collects the row entropies, in nats, of every routed attention call: `ea.apply(pipe, record=recorder)`.

    The entropy of a query is -sum p ln p over its keys. For each layer, step, branch and head the recorder keeps the
    mean, the (population) standard deviation, the minimum and the maximum over the queries and over the images of the
    batch; in joint attention, over the queries of the image, whose number is then `seqlen_q`. Nothing waits for the
    device: what is recorded stays there until it is read.

    Several generations may be recorded one after the other; steps start at 0 in each. `reset()` forgets them.

    Args:
        per_query: keep also the entropy of every query, averaged over the heads, for `spatial()`. That is one float32
            for each query, layer, step and image, in addition to four for each head.
        branches: names of the equal parts of the denoiser's batch, in order. None finds them out, call by call: rows
            with the text of the prompt are "cond", those with the text of the negative prompt "uncond", and if the
            pipeline encodes neither, or runs without guidance, the batch is "all". A batch with rows of other texts
            is refused at its first call. If the denoiser is routed without its pipeline, no text is known: each batch
            is "all" unless its parts are named here, as ("uncond", "cond").

    Raises:
        TypeError: `per_query` is no bool, or `branches` no tuple of strings.
        ValueError: `branches` is empty, or has a name twice.
    """

    def __init__(self, per_query: bool = False, branches: tuple[str, ...] | None = None):
        require_bool("per_query", per_query)
        super().__init__(branches)
        self.per_query = per_query
        self._records: list[_Record] = []

    def __len__(self) -> int:
        """Number of attention calls recorded."""
        return len(self._records)

    def reset(self) -> None:
        """Forget everything recorded."""
        self._records.clear()

    def wants(self, info: CallInfo, latent_size: tuple[int, int]) -> Request:
        return "entropy"

    def record(
        self,
        info: CallInfo,
        scale: float | torch.Tensor,
        entropy: torch.Tensor,
        branches: tuple[str, ...],
        latent_size: tuple[int, int],
    ) -> None:
        """Add the entropies of one call, without waiting for the device.

        Args:
            info: the call.
            scale: the softmax scale that was used, a number or a tensor of shape (), (H,) or (B, H); of the last one
                the mean of each branch is kept.
            entropy: (B, H, queries) in nats.
            branches: names of the equal parts of B, in order.
            latent_size: (rows, columns) of the image in latent cells.
        """
        batch, heads, seqlen_q = entropy.shape
        self._check_parts(info, batch, branches)
        parts = entropy.detach().view(len(branches), batch // len(branches), heads, seqlen_q)
        variance, mean = torch.var_mean(parts, dim=(1, 3), correction=0)
        statistics = torch.stack([mean, variance.sqrt(), parts.amin(dim=(1, 3)), parts.amax(dim=(1, 3))])
        self._records.append(
            _Record(
                info=info,
                branches=branches,
                scale=kept_scale(scale, len(branches)),
                statistics=statistics,
                queries=seqlen_q,
                per_query=parts.mean(dim=2) if self.per_query else None,
                grid=_grid(seqlen_q, latent_size),
            )
        )

    def to_columns(self) -> dict[str, list[Any]]:
        """The table of `to_dataframe` as lists.

        Returns:
            {column: values}, all of the same length.
        """
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        records = list(self._records)
        for record, statistics, scales in zip(records, _statistics_of(records), scales_of(records), strict=True):
            info, heads = record.info, record.info.num_heads
            for at, (mean, std, low, high) in enumerate(statistics.transpose(1, 0, 2)):
                branch = record.branches[at]
                shared = (info.layer, info.kind, info.step, branch)
                for name, value in zip(COLUMNS, shared, strict=False):
                    columns[name] += [value] * heads
                columns["head"] += range(heads)
                columns["seqlen_q"] += [record.queries] * heads
                columns["seqlen_k"] += [info.seqlen_k] * heads
                columns["scale"] += scales[at * heads : (at + 1) * heads]
                for name, values in (("mean", mean), ("std", std), ("min", low), ("max", high)):
                    columns[name] += values.tolist()
        return columns

    def to_dataframe(self) -> Any:
        """The recorded entropies as a pandas.DataFrame.

        Returns:
            One row for each layer, step, branch and head, in the order of the calls. Columns: layer, kind ("self",
            "cross" or "joint"), step, branch, head, seqlen_q, seqlen_k, scale, and mean, std, min and max in nats.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe() needs pandas (pip install pandas); save() does not") from error
        return pd.DataFrame(self.to_columns(), columns=list(COLUMNS))

    def summary(self) -> Any:
        """A pandas.DataFrame with the entropy of each layer, averaged over steps, heads and generations.

        Returns:
            One row for each layer, branch and number of tokens, in the order of the calls. Columns: layer, kind,
            branch, seqlen_q, seqlen_k, heads, steps (their numbers), scale, mean (nats), relative (mean / ln seqlen_k:
            1 is uniform attention), head_min and head_max, the lowest and highest mean of a head.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return as_frame(by_layer(self.to_columns(), "mean", ["scale"]))

    def plot(self) -> Any:
        """Draw the entropy, divided by ln N, of each head and layer, and of each layer at each step.

        The layers are those in which the image attends to itself, or to the text if there are no others, without the
        unconditional branch.

        Returns:
            A matplotlib figure outside pyplot's global state; a notebook shows it, `figure.savefig(path)` writes it.

        Raises:
            ValueError: no such layer was recorded.
            ModuleNotFoundError: matplotlib, pandas or diffusers is not installed.
        """
        if not self._records:
            raise ValueError(f"plot(): {NOTHING}")
        draw, rows = figures(), self.to_dataframe()
        rows.loc[(rows["kind"] != "cross") & ~rows["layer"].isin(self.picture_layers()), "kind"] = "text"
        return draw.entropy_of_layers(rows)

    def _repr_html_(self) -> str:
        rows = by_layer(self.to_columns(), "mean", ["scale"])
        note = f"{len(self)} attention calls; entropies in nats, means over steps and heads" if rows else NOTHING
        return table(type(self).__name__, rows, note)

    def save(self, path: str | Path) -> Path:
        """Write the table of `to_dataframe`, without pandas.

        Args:
            path: ends in .csv, or in .json for a list with one object for each row.

        Returns:
            The path.

        Raises:
            ValueError: the path has another ending.
        """
        return write_table(Path(path), COLUMNS, zip(*self.to_columns().values(), strict=True))

    def picture_layers(self) -> dict[str, str]:
        """The recorded layers that attend to the image, without those of text alone.

        Returns:
            {layer: "self" or "joint"}.
        """
        return {record.info.layer: record.info.kind for record in self._records if _sees_image(record.info)}

    def spatial(
        self,
        *,
        kind: str | None = None,
        branch: str | None = None,
        step: int | None = None,
        grid: tuple[int, ...] | None = None,
    ) -> dict[str, np.ndarray]:
        """Entropy of every query of the image, at its position in the image.

        Averaged over heads, and over steps (and generations, if several were recorded) unless `step` is given.

        Args:
            kind: "self", "cross" or "joint". None is every layer in which the image attends to itself, alone ("self")
                or with the text ("joint"), or "cross" if the model has no such layer.
            branch: a recorded branch. None is the guided half, "cond", of a guided batch, else the only branch.
            step: a denoising step, from 0. None is the mean over all steps.
            grid: (rows, columns) of the image in tokens, or (frames, rows, columns) of a video, which is averaged over
                frames. Tokens after the grid, which some models add as padding, are left out. None computes the grid
                from the latent size; that works for single images without padding.

        Returns:
            {layer: array (images, rows, columns)}, float32, in nats.

        Raises:
            ValueError: per_query is False; nothing of this kind, branch or step was recorded; several branches were
                recorded and none is chosen; a layer's queries are no such grid, as in Lumina 2, where the length of
                the text differs by prompt.
        """
        if not self.per_query:
            raise ValueError("spatial() needs the entropies of single queries: EntropyRecorder(per_query=True)")
        if kind not in (None, "self", "cross", "joint"):
            raise ValueError(f"kind: expected None, 'self', 'cross' or 'joint', got {kind!r}")
        if grid is not None and (len(grid) not in (2, 3) or not all(isinstance(n, int) and n > 0 for n in grid)):
            raise ValueError(f"grid: expected (rows, columns) or (frames, rows, columns), got {grid!r}")
        records = self._of_image(kind, step)
        branch = _chosen_branch(branch, records)
        by_layer: dict[str, list[_Record]] = defaultdict(list)
        for record in records:
            if branch in record.branches:
                by_layer[record.info.layer].append(record)
        return {layer: _mean_map(layer, calls, branch, grid) for layer, calls in by_layer.items()}

    def _of_image(self, kind: str | None, step: int | None) -> list[_Record]:
        """The records of this kind and step, without text that attends to itself."""
        image_layers = self.picture_layers()
        if kind is None:
            kinds = ("self", "joint") if image_layers else ("cross",)
        else:
            kinds = (kind,)
        records = [
            record
            for record in self._records
            if (record.info.kind == "cross" or record.info.layer in image_layers)
            and record.info.kind in kinds
            and step in (None, record.info.step)
        ]
        if not records:
            at = "" if step is None else f" at step {step}"
            raise ValueError(f"no {'' if kind is None else kind + '-'}attention call was recorded{at}")
        return records


def _chosen_branch(branch: str | None, records: list[_Record]) -> str:
    names = list(dict.fromkeys(name for record in records for name in record.branches))
    if branch is None:
        if len(names) > 1 and "cond" not in names:
            raise ValueError(f"branch: expected one of {names}, which were recorded, got None")
        return names[0] if len(names) == 1 else "cond"
    if branch not in names:
        raise ValueError(f"branch: expected one of {names}, which were recorded, got {branch!r}")
    return branch


def _sees_image(info: CallInfo) -> bool:
    return info.kind != "cross" and info.text_tokens != info.seqlen_k


def _statistics_of(records: list[_Record]) -> list[np.ndarray]:
    """The statistics (4, branches, heads) of every record on the host, in one transfer for each device."""
    flat = to_host([record.statistics.flatten() for record in records])
    return [
        values.reshape(_STATISTICS, len(record.branches), record.info.num_heads)
        for record, values in zip(records, flat, strict=True)
    ]


def _mean_map(layer: str, calls: list[_Record], branch: str, given: tuple[int, ...] | None) -> np.ndarray:
    entropies = [call.per_query[call.branches.index(branch)] for call in calls if call.per_query is not None]
    shapes = {(each.shape, call.grid) for each, call in zip(entropies, calls, strict=True)}
    if len(shapes) > 1:
        raise ValueError(f"layer {layer!r} was recorded at several sizes or batches: reset() between them")
    (images, seqlen_q), recorded = shapes.pop()
    grid: tuple[int, ...] = recorded if given is None else given
    cells = math.prod(grid)
    if cells > seqlen_q or (given is None and cells != seqlen_q):
        raise ValueError(
            f"layer {layer!r} has {seqlen_q} queries, which are no image of {'x'.join(map(str, grid))} tokens: give "
            "grid=(rows, columns), or (frames, rows, columns) of a video"
        )
    frames = torch.stack(entropies).mean(dim=0)[:, :cells].reshape(images, -1, *grid[-2:])
    return frames.mean(dim=1).cpu().numpy()
