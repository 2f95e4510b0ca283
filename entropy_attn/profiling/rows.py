"""From a recorder to the rows of a profile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from entropy_attn.profiling.layers import Measured
from entropy_attn.profiling.plan import Run
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.recorders.response import ResponseRecorder

DIGITS = 6  # significant digits: more than half precision has; what is read back equals what was written
_CALL = ["layer", "kind", "step", "branch"]


def rows_of(recorder: EntropyRecorder, run: Run, measured: Measured, heads: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of `Profile.entropy` and `Profile.heads` of one run."""
    table = recorder.to_dataframe()
    images = recorder.picture_layers()
    texts = (table["kind"] != "cross") & ~table["layer"].isin(images)
    table.loc[texts, "kind"] = "text"
    absent = sorted(set(measured.layers) - set(table["layer"]))
    if absent:
        raise RuntimeError(f"{run}: {len(absent)} layers were not called, such as {absent[0]}: are layers skipped?")
    by_head = _head_means(table[table["layer"].isin(measured.layers)])
    return _finished(table if heads else over_heads(table), run), _finished(by_head, run)


def response_rows(recorder: ResponseRecorder, run: Run) -> pd.DataFrame:
    """The rows of `Profile.response` of one run."""
    return _finished(recorder.to_dataframe(), run)


def over_heads(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each layer, step and branch: statistics over the queries of all heads, and of the means of heads."""
    table = table.assign(_square=table["std"] ** 2 + table["mean"] ** 2)
    # A layer can be called more than once in a step, as for a panorama: these calls form one row.
    groups = table.groupby(_CALL, sort=False)
    of_heads = table.groupby([*_CALL, "head"], sort=False)["mean"].mean().groupby(level=_CALL, sort=False)
    joined = pd.DataFrame(
        {
            "heads": groups["head"].nunique(),
            "seqlen_q": groups["seqlen_q"].first(),
            "seqlen_k": groups["seqlen_k"].first(),
            "scale": groups["scale"].mean(),
            "mean": groups["mean"].mean(),
            "std": np.sqrt(np.maximum(groups["_square"].mean() - groups["mean"].mean() ** 2, 0.0)),
            "min": groups["min"].min(),
            "max": groups["max"].max(),
            "head_min": of_heads.min(),
            "head_max": of_heads.max(),
        }
    )
    return joined.reset_index()


def _head_means(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each layer, branch and head: the mean over steps."""
    keys = ["layer", "kind", "branch", "head"]
    means = table.groupby(keys, sort=False).agg(
        seqlen_q=("seqlen_q", "first"), seqlen_k=("seqlen_k", "first"), scale=("scale", "mean"), mean=("mean", "mean")
    )
    return means.reset_index()


def _finished(table: pd.DataFrame, run: Run) -> pd.DataFrame:
    for column in table.select_dtypes("floating").columns:
        table[column] = rounded(table[column].to_numpy())
    for position, (column, value) in enumerate(run.keys.items()):
        table.insert(position, column, value)
    return table


def rounded(values: Any) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
