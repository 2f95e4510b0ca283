"""The charts of a profile: a click on a head selects what the others show."""

from __future__ import annotations

from typing import Any

import altair as alt

from entropy_attn.explore.page import Section
from entropy_attn.explore.profile_rows import (
    ALL_HEADS,
    head_rows,
    largest,
    layer_names,
    layer_table,
    sizes,
    slope_rows,
    step_rows,
    token_rows,
)
from entropy_attn.explore.reading import ProfileFolder
from entropy_attn.explore.spatial_views import spatial_rows, spatial_view
from entropy_attn.plots.style import GREY, POLICY_COLORS

CHOSEN = "#d62728"
LINE_WIDTH, LINE_HEIGHT = 470, 280
LAYER_AXIS = alt.Axis(labelAngle=-50, grid=False)
SIDE_BY_SIDE = 12  # layers with which the heat map leaves space for the slopes


def profile_section(profile: ProfileFolder) -> Section:
    """The part of the page about a profile."""
    summary = profile.summary
    layers, policies = list(layer_names(profile).values()), profile.policies
    tables: dict[str, list[dict[str, Any]]] = {
        "heads": head_rows(profile),
        "steps": step_rows(profile),
        "tokens": token_rows(profile),
        "slopes": slope_rows(profile),
    }
    size = alt.param(name="size", value=largest(profile), bind=_choice("size, px", sizes(profile)))
    scale = alt.param(name="scale", value=policies[0], bind=_choice("scale of the heat map", policies))
    first = tables["heads"][0] if tables["heads"] else {"layer": layers[0], "head": 0}
    # Selects one cell. The empty selection is not reachable: `clear` is off, and a click on a blank keeps the old one.
    chosen = alt.selection_point(
        name="chosen", fields=["layer", "head"], value=[{"layer": first["layer"], "head": first["head"]}], clear=False,
        toggle=False,
    )  # fmt: skip
    color = alt.Color(
        "policy:N",
        title="scale",
        sort=policies,
        scale=alt.Scale(
            domain=policies, range=[POLICY_COLORS[index % len(POLICY_COLORS)] for index in range(len(policies))]
        ),
    )
    heat, steps = _head_map(layers, chosen), _steps(profile, color)
    if not tables["slopes"]:
        rows: list[Any] = [heat, steps]
    elif len(layers) <= SIDE_BY_SIDE:
        rows = [alt.hconcat(heat, _slopes(layers, color), spacing=40), alt.hconcat(steps, _tokens(color))]
    else:
        rows = [heat, _slopes(layers, color), alt.hconcat(steps, _tokens(color))]
    notes = list(summary["notes"])
    if not tables["slopes"]:
        notes.append("no slope against ln N: each layer has one token count in this profile")
    maps = spatial_rows(profile)
    if maps.rows:
        tables["maps"] = maps.rows
        rows.append(spatial_view(profile, maps))
        notes += maps.notes
    else:
        notes.append("no entropy over the image: the profile holds no maps of single steps")
    chart = (
        alt.vconcat(*rows, spacing=24)
        .add_params(size, scale)
        .properties(datasets=tables)
        .resolve_scale(color="independent")
        .configure_view(stroke=None)
        .configure_axis(grid=True, gridColor="#eeeeee", labelFontSize=11, titleFontSize=12, titleFontWeight="normal")
        .configure_title(fontSize=13, anchor="start", fontWeight="bold")
    )
    return Section(
        title=f"Attention entropy of {_model(summary)}",
        facts=_facts(summary),
        table=layer_table(profile),
        table_title="N, T and factor on the default scale of each layer",
        about="H is the entropy of a query's attention in nats, N the number of keys: H / ln N is 1 for uniform "
        "attention and 0 for attention to one key. Click a cell of the heat map to select what the other charts show.",
        spec=chart.to_dict(),
        notes=notes,
    )  # fmt: skip


def _model(summary: dict[str, Any]) -> str:
    return str(summary.get("model", summary["pipeline"])).rstrip("/").rpartition("/")[2]


def _facts(summary: dict[str, Any]) -> dict[str, str]:
    versions = summary.get("versions") or {}
    model, trained = summary.get("model", ""), summary["training_size"] or "a size that is not known"
    return {
        "model": f"{model} {summary['pipeline']}, {summary['denoiser']} in {summary['weights']}".strip(),
        "sizes": f"{', '.join(summary['sizes'])} px; trained at {trained}",
        "scales": "; ".join(f"{name}: {text}" for name, text in summary["policies"].items()),
        "runs": f"{summary['steps']} steps, seeds {', '.join(map(str, summary['seeds']))}, "
        f"guidance scale {summary['guidance_scale'] if summary['guidance_scale'] is not None else 'of the pipeline'}",
        "prompts": "; ".join(summary["prompts"]) or "none",
        "device": str(summary.get("device", "not recorded")),
        "versions": ", ".join(f"{name} {text}" for name, text in versions.items() if text) or "not recorded",
    }  # fmt: skip


def _choice(title: str, options: list[str]) -> Any:
    kind = alt.binding_radio if len(options) <= 4 else alt.binding_select
    return kind(options=options, name=title)


def _head_map(layers: list[str], chosen: Any) -> Any:
    title = alt.Title(alt.expr("'H / ln N of each head at ' + size + ' px, scale: ' + scale"))
    base = (
        alt.Chart(alt.NamedData("heads"), title=title)
        .transform_filter("datum.size == size && datum.policy == scale")
        .encode(
            x=alt.X("layer:N", sort=layers, title="layer, in the order of the forward pass", axis=LAYER_AXIS),
            y=alt.Y("head:O", title="head", axis=alt.Axis(grid=False)),
        )
    )  # fmt: skip
    cells = base.mark_rect(cursor="pointer", tooltip=True).encode(
        color=alt.Color("relative:Q", title="H / ln N", scale=alt.Scale(scheme="cividis", domain=[0, 1])),
        tooltip=[
            alt.Tooltip("layer:N"), alt.Tooltip("head:O"), alt.Tooltip("relative:Q", title="H / ln N", format=".3f"),
            alt.Tooltip("entropy:Q", title="H, nats", format=".3f"), alt.Tooltip("tokens:Q", title="N"),
        ],
    )  # fmt: skip
    frame = base.mark_rect(fill=None, stroke=CHOSEN, strokeWidth=3).transform_filter(chosen)
    return alt.layer(cells.add_params(chosen), frame).properties(
        width=alt.Step(_layer_step(layers)), height=alt.Step(18)
    )


def _steps(profile: ProfileFolder, color: Any) -> Any:
    head = "chosen.head[0]" if profile.by_head else str(ALL_HEADS)
    shown = (
        "', head ' + chosen.head[0]" if profile.by_head else "', all heads; the band is from the lowest to the highest'"
    )
    title = alt.Title(alt.expr(f"'Entropy against step: ' + chosen.layer[0] + {shown}"))
    base = (
        alt.Chart(alt.NamedData("steps"), title=title)
        .transform_filter(f"datum.size == size && datum.layer == chosen.layer[0] && datum.head == {head}")
        .encode(
            x=alt.X(
                "step:Q",
                title="step",
                axis=alt.Axis(tickCount=max(1, min(10, profile.summary["steps"] - 1)), format="d"),
            ),
            color=color,
        )
    )
    values = ["step", "entropy"] if profile.by_head else ["step", "entropy", "low", "high"]
    base = base.transform_flatten(values)
    line = base.mark_line(point=True, tooltip=True).encode(
        y=alt.Y("entropy:Q", title="mean entropy, nats", scale=alt.Scale(zero=False)),
        tooltip=[alt.Tooltip("policy:N", title="scale"), "step:Q", alt.Tooltip("entropy:Q", format=".4f")],
    )
    parts = [line]
    if not profile.by_head:
        parts.insert(0, base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title="mean entropy, nats"), y2="high:Q"))
    return alt.layer(*parts).properties(width=LINE_WIDTH, height=LINE_HEIGHT)


def _tokens(color: Any) -> Any:
    title = alt.Title(
        alt.expr("'Mean entropy against ln N: ' + chosen.layer[0]"),
        subtitle="grey: the other layers, same scale as the heat map",
    )
    x = alt.X("ln_tokens:Q", title="ln N (N = tokens attended)", scale=alt.Scale(zero=False, nice=True))
    y = alt.Y("entropy:Q", title="mean entropy, nats", scale=alt.Scale(zero=True))
    base = alt.Chart(alt.NamedData("tokens"), title=title).encode(x=x, y=y)
    others = (
        base.transform_filter("datum.policy == scale && datum.layer != chosen.layer[0]")
        .mark_line(color=GREY, opacity=0.45, strokeWidth=1)
        .encode(detail="layer:N")
    )
    line = (
        base.transform_filter("datum.layer == chosen.layer[0]")
        .mark_line(point=alt.OverlayMarkDef(size=60), tooltip=True)
        .encode(
            color=color,
            tooltip=[
                alt.Tooltip("policy:N", title="scale"), "size:N", alt.Tooltip("tokens:Q", title="N"),
                alt.Tooltip("entropy:Q", format=".4f"),
            ],
        )
    )  # fmt: skip
    uniform = base.mark_line(color=GREY, strokeDash=[2, 3]).encode(y=alt.Y("ln_tokens:Q", title="mean entropy, nats"))
    return alt.layer(uniform, others, line).properties(width=LINE_WIDTH, height=LINE_HEIGHT)


def _slopes(layers: list[str], color: Any) -> Any:
    title = alt.Title(
        "Slope of each layer's entropy against ln N", subtitle="0: equally sharp at every size, 1: uniform"
    )
    base = alt.Chart(alt.NamedData("slopes"), title=title).encode(
        x=alt.X("layer:N", sort=layers, title=None, axis=LAYER_AXIS),
        y=alt.Y("slope:Q", title="slope"),
    )  # fmt: skip
    dots = base.mark_circle(size=80, opacity=0.9, tooltip=True).encode(
        color=color,
        tooltip=["layer:N", alt.Tooltip("policy:N", title="scale"), alt.Tooltip("slope:Q", format=".3f")],
    )
    ring = (
        base.transform_filter("datum.layer == chosen.layer[0]")
        .mark_point(size=190, strokeWidth=2, color=CHOSEN, filled=False)
    )  # fmt: skip
    return alt.layer(dots, ring).properties(width=alt.Step(_layer_step(layers)), height=150)


def _layer_step(layers: list[str]) -> int:
    """Pixels for each layer."""
    return max(12, min(46, 900 // len(layers)))
