"""The folder of a finished profile, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from entropy_attn.profiling.store import finished, read_step_maps, read_table
from entropy_attn.runs.folder import PLAN

SUMMARY = "summary.json"
KEYS = ("policies", "sizes", "heads", "steps", "seeds", "prompts", "guidance_scale", "training_size", "notes",
        "pipeline", "denoiser", "weights")  # fmt: skip


@dataclass(frozen=True)
class ProfileFolder:
    """What the page shows of a profile.

    Attributes:
        folder: where it lies.
        summary: what is in summary.json.
        entropy: the rows of entropy.csv or entropy.csv.gz.
        heads: the rows of heads.csv.
        regimes: the rows of regimes.csv; None where they were not measured.
        maps: {policy: {layer: array (steps, rows, columns)}}, entropies in nats at the largest size, NaN at a step
            without the layer.
    """

    folder: Path
    summary: dict[str, Any]
    entropy: pd.DataFrame
    heads: pd.DataFrame
    regimes: pd.DataFrame | None
    maps: dict[str, dict[str, np.ndarray]]

    @property
    def by_head(self) -> bool:
        """Whether each head has a row at each step."""
        return "head" in self.entropy.columns

    @property
    def policies(self) -> list[str]:
        return list(self.summary["policies"])

    def __repr__(self) -> str:
        sizes, layers = len(self.summary["sizes"]), self.summary["layers_measured"]
        return f"<ProfileFolder: {sizes} sizes, scales {', '.join(self.policies)}, {layers} layers>"

    def _repr_png_(self) -> bytes:
        from entropy_attn.explore.needs import require

        require()
        from entropy_attn.explore.page import still
        from entropy_attn.explore.profile_views import profile_section

        return still(profile_section(self))


def read_profile(folder: Path, argument: str = "RUN") -> ProfileFolder:
    """Read a folder that `entropy-attn profile --out` or `ea.profile(out=...)` wrote.

    Raises:
        ValueError: there is no finished profile; the message begins with `argument`.
    """
    if not (folder / PLAN).is_file():
        raise ValueError(f"{argument}: expected a folder written by `entropy-attn profile`, got {str(folder)!r}")
    counts = finished(folder)
    if counts is None:
        raise ValueError(
            f"{argument}: expected the plan of a profile in {PLAN}, got that of something else in {str(folder)!r}"
        )
    if counts[0] < counts[1]:
        raise ValueError(
            f"{argument}: expected a finished profile, got {counts[0]} of {counts[1]} runs in {str(folder)!r}: "
            "continue it with profile --resume"
        )
    summary = _json(folder / SUMMARY, argument)
    missing = [key for key in KEYS if key not in summary]
    if missing:
        raise ValueError(
            f"{argument}: expected the summary of a profile in {SUMMARY}, but that in {str(folder)!r} has no "
            f"{missing[0]!r}"
        )
    entropy = folder / ("entropy.csv.gz" if summary["heads"] else "entropy.csv")
    regimes = folder / "regimes.csv"
    for needed in (entropy, folder / "heads.csv"):
        if not needed.is_file():
            raise ValueError(f"{argument}: expected {needed.name} in the profile, but {str(folder)!r} has none")
    return ProfileFolder(
        folder,
        summary,
        read_table(entropy),
        read_table(folder / "heads.csv"),
        read_table(regimes) if regimes.is_file() else None,
        _maps(folder, list(summary["policies"])),
    )


def _json(path: Path, argument: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{argument}: expected a readable {path.name}, got {str(path)!r}: {error}") from error


def _maps(folder: Path, policies: list[str]) -> dict[str, dict[str, np.ndarray]]:
    found = read_step_maps(folder)
    return {
        policy: {layer: values.astype(np.float32) for layer, values in found[policy].items()}
        for policy in policies
        if policy in found
    }
