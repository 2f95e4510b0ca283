"""What is written when all runs are finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from entropy_attn.profiling.analysis import changes, layer_means
from entropy_attn.profiling.regimes import policy_file
from entropy_attn.profiling.result import Profile
from entropy_attn.profiling.rows import rounded
from entropy_attn.profiling.store import RESPONSE, Store
from entropy_attn.runs.folder import PLAN

COLUMNS = ["policy", "size", "height", "width", "layer", "kind", "tokens", "ln_tokens", "entropy", "change"]


def save_all(found: Profile, store: Store, title: str, figures: bool) -> dict[str, Path]:
    """Write the tables, summary.json and the figures: {name: path} of all files."""
    store.write_tables()
    layers = changes(layer_means(found.entropy), found.plan)[COLUMNS]
    for column in ("ln_tokens", "entropy", "change"):
        layers[column] = rounded(layers[column])
    table, digest = store.folder / "layers.csv", store.folder / "summary.json"
    layers.to_csv(table, index=False)
    digest.write_text(json.dumps(found.summary, indent=2) + "\n", encoding="utf-8")
    files = _save_regimes(found, store, title)
    files |= {**store.tables, "layers": table, "summary": digest, "plan": store.folder / PLAN}
    if figures:
        from entropy_attn.plots import save_figures

        files |= save_figures(found, title, store.folder)
    return files


def _save_regimes(found: Profile, store: Store, title: str) -> dict[str, Path]:
    """regimes.csv and hold-entropy.json; those of an earlier profile are removed where this one has none."""
    paths = {"regimes": store.folder / "regimes.csv", "hold": store.folder / "hold-entropy.json"}
    table = found.regimes
    if table is None:
        (store.folder / RESPONSE).unlink(missing_ok=True)
    policy = None if table is None else policy_file(table, {"model": title, **_made_by(found)})
    for name, there in (("regimes", table is not None), ("hold", policy is not None)):
        if not there:
            paths.pop(name).unlink(missing_ok=True)
    if table is not None:
        shown = table.copy()
        for column in shown.select_dtypes("floating").columns:
            shown[column] = rounded(shown[column])
        shown.to_csv(paths["regimes"], index=False)
    if policy is not None:
        paths["hold"].write_text(json.dumps(policy, indent=1) + "\n", encoding="utf-8")
    return paths


def _made_by(found: Profile) -> dict[str, Any]:
    plan = found.plan.described()
    names = ("pipeline", "denoiser", "weights", "sizes", "prompts", "seeds", "steps", "guidance_scale")
    return {
        "what": "factors on 1/sqrt(d) by layer and image tokens; LayerFactors reads them",
        **{name: plan[name] for name in names if name in plan},
        "measured_at_steps": list(found.plan.regime_at),
    }
