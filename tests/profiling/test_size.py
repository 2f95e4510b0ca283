"""The file sizes of a profile of a large model, from as many rows of the same length."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_attn.profiling.plan import ProfilePlan, Run
from entropy_attn.profiling.result import RunResult
from entropy_attn.profiling.rows import _finished, _head_means, over_heads
from entropy_attn.profiling.store import Store

STEPS, SIZES, POLICIES = 15, 5, 2
# Stable Diffusion XL: (block, attentions, transformer blocks in each, heads)
BLOCKS = (("down_blocks.1", 2, 2, 10), ("down_blocks.2", 2, 10, 20), ("mid_block", 1, 10, 20),
          ("up_blocks.0", 3, 10, 20), ("up_blocks.1", 3, 2, 10))  # fmt: skip


def recorded(random) -> pd.DataFrame:
    """The table of a recorder for one step of one run; other steps have the same number of rows."""
    rows = []
    for block, attentions, depth, heads in BLOCKS:
        for index in range(attentions * depth):
            stem = f"{block}.attentions.{index // depth}.transformer_blocks.{index % depth}"
            for kind, name in (("self", "attn1"), ("cross", "attn2")):
                for branch in ("uncond", "cond"):
                    for head in range(heads):
                        rows.append((f"{stem}.{name}", kind, 0, branch, head, 16384, 16384 if kind == "self" else 77))
    table = pd.DataFrame(rows, columns=["layer", "kind", "step", "branch", "head", "seqlen_q", "seqlen_k"])
    table["scale"] = 0.12909944
    for name in ("mean", "std", "min", "max"):
        table[name] = random.uniform(0, 9, len(table)).astype(np.float32)
    return table


def size_of(folder, heads: bool) -> float:
    """MB of entropy.csv and heads.csv for all runs and steps."""
    table = recorded(np.random.default_rng(0))
    assert table.query("kind == 'self'")["layer"].nunique() == 70
    plan = ProfilePlan([(2048, 2048)], {"logn": None}, ["a"], heads=heads)
    run = Run((2048, 2048), "logn", 0)
    by_head = _finished(_head_means(table[table["kind"] == "self"]), run)
    store = Store(folder, plan, resume=False)
    rows = _finished(table if heads else over_heads(table), run)
    store.complete(lambda run: RunResult(rows, by_head, pd.DataFrame(), 1.0, [], None))
    store.write_tables()
    each = {name: path.stat().st_size for name, path in store.tables.items()}
    return SIZES * POLICIES * (STEPS * each["entropy"] + each["heads"]) / 1e6


def test_a_profile_of_sdxl_is_small(tmp_path):
    plain, every_head = size_of(tmp_path / "plain", heads=False), size_of(tmp_path / "heads", heads=True)
    assert plain <= 15, plain
    assert every_head <= 25, every_head
