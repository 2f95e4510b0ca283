"""Figures of an entropy profile, from data frames to PNG files."""

from __future__ import annotations

from pathlib import Path

from entropy_attn.plots.detail import entropy_against_step, entropy_maps, head_heat_map
from entropy_attn.plots.entropy import change_from_training, entropy_against_tokens, entropy_per_layer
from entropy_attn.plots.images import contact_sheet, side_by_side
from entropy_attn.plots.layers import layer_label
from entropy_attn.plots.regimes import layer_regimes
from entropy_attn.plots.style import DPI
from entropy_attn.profiling import Profile, changes, layer_means


def save_figures(result: Profile, model: str, out: Path) -> dict[str, Path]:
    """Draw every figure that the profile has data for.

    A figure of an earlier profile that this one has no data for is removed, so that a folder belongs to one profile.

    Args:
        result: what `ea.profile` returned.
        model: name of the model, for the titles.
        out: folder to write into.

    Returns:
        {name: path} of the figures that were written.
    """
    plan = result.plan
    means, regimes = layer_means(result.entropy), result.regimes
    figures = {
        "entropy_vs_tokens": entropy_against_tokens(means, model),
        "entropy_vs_training": change_from_training(changes(means, plan), plan, model),
        "entropy_per_layer": entropy_per_layer(means, model, reference=plan.reference),
        "entropy_heads": head_heat_map(result.heads, model),
        "entropy_vs_step": entropy_against_step(result.entropy, model),
        "layer_regimes": None if regimes is None else layer_regimes(regimes, plan, model),
        "entropy_map": entropy_maps(result, model) if any(result.maps.values()) else None,
        "pictures": contact_sheet(result, model) if result.pictures else None,
    }
    paths = {}
    for name, figure in figures.items():
        path = out / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        figure.savefig(path, dpi=DPI)
        paths[name] = path
    return paths


__all__ = [
    "change_from_training",
    "contact_sheet",
    "entropy_against_step",
    "entropy_against_tokens",
    "entropy_maps",
    "entropy_per_layer",
    "head_heat_map",
    "layer_label",
    "layer_regimes",
    "save_figures",
    "side_by_side",
]
