"""What is written when all runs are finished."""

from __future__ import annotations

import json

from entropy_attn.profiling.analysis import changes, layer_means
from entropy_attn.profiling.result import Profile
from entropy_attn.profiling.rows import rounded
from entropy_attn.profiling.store import LEDGER, Store

COLUMNS = ["policy", "size", "height", "width", "layer", "kind", "tokens", "ln_tokens", "entropy", "change"]


def save_all(found: Profile, store: Store, title: str, figures: bool) -> None:
    """Write summary.json, layers.csv and the figures; `found.files` gets the paths of all files."""
    layers = changes(layer_means(found.entropy), found.plan)[COLUMNS]
    for column in ("ln_tokens", "entropy", "change"):
        layers[column] = rounded(layers[column])
    table, digest = store.folder / "layers.csv", store.folder / "summary.json"
    layers.to_csv(table, index=False)
    digest.write_text(json.dumps(found.summary, indent=2) + "\n", encoding="utf-8")
    found.files |= {**store.tables, "layers": table, "summary": digest, "plan": store.folder / LEDGER}
    if figures:
        from entropy_attn.plots import save_figures

        found.files |= save_figures(found, title, store.folder)
