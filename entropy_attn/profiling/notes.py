"""What a profile could not measure or compare, and why."""

from __future__ import annotations

from collections.abc import Mapping

from entropy_attn.profiling.layers import Measured
from entropy_attn.profiling.plan import ProfilePlan


def notes(plan: ProfilePlan, measured: Measured) -> list[str]:
    """`Profile.notes`."""
    found = [f"{_layers(names)}: not measured, {reason}" for reason, names in _by_reason(measured.unmeasured).items()]
    if measured.crosses:
        found.append(
            "the entropies are those of cross-attention: its keys are the text, so N does not grow with the image"
        )
    if plan.regime_steps > 0 and measured.crosses:
        found.append("regimes not measured: the keys of cross-attention are the text, at every size the same")
    elif plan.regime_steps > 0 and plan.baseline is None:
        found.append("regimes not measured: the model's default scale, 'off', is not among the scales")
    if plan.reference is None:
        found.append("not compared with the training size, which the model does not state")
    elif plan.reference not in [tuple(size) for size in plan.sizes]:
        height, width = plan.reference
        found.append(f"not compared with the training size, {height}x{width} px, which is not among the sizes")
    elif plan.baseline is None:
        found.append(
            "compared with the same policy at the training size, because the model's default scale was not run"
        )
    return found


def _by_reason(reasons: Mapping[str, str | None]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for layer, reason in reasons.items():
        found.setdefault(reason or "for an unknown reason", []).append(layer)
    return found


def _layers(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more layers"
