"""The entropy of every attention call of a sampling: a table, and a figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from typing import Any

from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.validation import require_one_of

from .chain import Tap, extended
from .tracker import Pass

COLUMNS = (
    "layer",
    "kind",
    "step",
    "sigma",
    "branch",
    "seqlen_q",
    "seqlen_k",
    "scale",
    "entropy",
    "relative",
    "head_min",
    "head_max",
)
KINDS = {"self": ("self", "joint"), "cross": ("cross",)}


class Probe(Tap):
    """Entropies of the latest sampling of one model."""

    recorder: EntropyRecorder

    def __init__(self) -> None:
        super().__init__(EntropyRecorder())
        self.sigmas: dict[int, float] = {}  # step -> noise level

    def begin(self) -> None:
        self.recorder.reset()
        self.sigmas = {}

    def check_pass(self, current: Pass) -> None:
        self.sigmas[current.step] = current.sigma

    def rows(self) -> list[dict[str, Any]]:
        """One row for each layer, step and branch, in the order of the calls; see `COLUMNS`.

        Entropies are in nats: the mean over queries, images and heads, and the lowest and highest mean of a head.
        `relative` is the mean divided by ln(seqlen_k), nan for one key.

        Raises:
            ValueError: nothing was recorded.
        """
        if not len(self.recorder):
            raise ValueError(
                "probe: expected a recorded sampling, got none: sample with the model that the probe gives"
            )
        return list(self._rows())

    def _rows(self) -> Iterator[dict[str, Any]]:
        columns = self.recorder.to_columns()
        names = ("layer", "kind", "step", "branch", "seqlen_q", "seqlen_k", "scale", "mean", "head")
        calls: list[list[dict[str, Any]]] = []
        for values in zip(*(columns[name] for name in names), strict=True):
            head = dict(zip(names, values, strict=True))
            if head["head"] == 0:
                calls.append([])
            calls[-1].append(head)
        for heads in calls:
            first, means = heads[0], [head["mean"] for head in heads]
            entropy, keys = sum(means) / len(means), first["seqlen_k"]
            yield {
                **{name: first[name] for name in names[:4]},
                "sigma": self.sigmas[first["step"]],
                **{name: first[name] for name in ("seqlen_q", "seqlen_k", "scale")},
                "entropy": entropy,
                "relative": entropy / math.log(keys) if keys > 1 else math.nan,
                "head_min": min(means),
                "head_max": max(means),
            }


def probed(model: Any) -> tuple[Any, Probe]:
    """A clone of a ModelPatcher whose entropies are recorded, and the probe that holds them."""
    probe = Probe()
    return extended(model, tap=probe), probe


def table(probe: Probe) -> str:
    """The rows as comma-separated values with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(probe.rows())
    return text.getvalue()


def figure(probe: Probe, kind: str) -> Any:
    """Entropy / ln N of each layer at each noise level, of the conditional branch.

    Args:
        probe: with a recorded sampling.
        kind: "self" (self- and joint attention) or "cross".

    Returns:
        A matplotlib figure outside pyplot's global state.

    Raises:
        ValueError: nothing of this kind was recorded.
    """
    import numpy as np

    from entropy_attn.plots.style import new_figure

    require_one_of("kind", kind, tuple(KINDS))
    rows = [row for row in probe.rows() if row["kind"] in KINDS[kind]]
    branches = list(dict.fromkeys(row["branch"] for row in rows))
    if not branches:
        raise ValueError(f"kind: expected a kind of attention that was recorded, got {kind!r}")
    branch = "cond" if "cond" in branches else branches[0]
    rows = [row for row in rows if row["branch"] == branch]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    steps = sorted({row["step"] for row in rows})
    values = np.full((len(layers), len(steps)), np.nan)
    for row in rows:
        values[layers.index(row["layer"]), steps.index(row["step"])] = row["relative"]
    drawn = new_figure(
        min(3.6 + 0.36 * len(steps), 14),
        min(1.8 + 0.2 * len(layers), 16),
        f"Attention entropy / ln N, {kind}, {branch}",
    )
    axis = drawn.subplots()
    shown = axis.imshow(values, aspect="auto", interpolation="nearest", cmap="cividis", vmin=0.0, vmax=1.0)
    axis.set_yticks(range(len(layers)), [layer.replace(".transformer_blocks", "") for layer in layers], fontsize=7)
    every = max(1, math.ceil(len(steps) / 12))
    axis.set_xticks(range(0, len(steps), every), [f"{probe.sigmas[step]:.3g}" for step in steps[::every]], fontsize=8)
    axis.set_xlabel("noise level sigma")
    drawn.colorbar(shown, ax=axis, pad=0.02, label="0 one key, 1 uniform")
    return drawn
