"""The folder of a profile with known entropies, and the page that is written from it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.support.saved_models import invented

__all__ = ["invented"]


def save_profile(found, folder, heads=True):
    """Write an invented profile as `ea.profile(out=folder)` does."""
    from entropy_attn.profiling.files import save_all
    from entropy_attn.profiling.result import RunResult
    from entropy_attn.profiling.rows import over_heads
    from entropy_attn.profiling.store import Store

    about = {"pipeline": "SomePipeline", "denoiser": "SomeUNet", "weights": "float32"}
    found.plan = dataclasses.replace(found.plan, heads=heads, about=about)
    store = Store(folder, found.plan, resume=False, response=True)

    def of(table, run):
        rows = table
        for name, value in run.keys.items():
            rows = rows[rows[name] == value]
        return rows

    def result(run):
        rows = of(found.entropy, run)
        if not heads:
            keys = dict(run.keys)
            rows = over_heads(rows.drop(columns=list(keys))).assign(**keys)
        maps = found.maps[run.policy] if found.plan.keeps_map(run) else None
        steps = maps and {layer: np.stack([values * (1 - 0.1 * step) for step in range(found.plan.steps)])
                          for layer, values in maps.items()}  # fmt: skip
        return RunResult(rows, of(found.heads, run), of(found.response, run), 1.0, [], maps, steps)

    store.complete(result)
    save_all(found, store, "shapes", figures=False)
    return folder


@pytest.fixture
def folder(invented, tmp_path):
    return save_profile(invented, tmp_path / "profile")
