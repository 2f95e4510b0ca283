"""The summary of the evaluation of the second embedded model, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.shapes.transformer.paired import best_policy, summary
from entropy_attn.evaluation.statistics import mean


def row(caption: str, asked: int, found: int, presence: int) -> dict:
    return {"caption": caption, "seed": 0, "found": found, "presence": presence, "exact count": int(asked == found),
            "count error": abs(asked - found)}  # fmt: skip


def test_summary_by_hand():
    off = [row("a", 2, 0, 0), row("b", 1, 1, 1), row("c", 3, 4, 0)]
    on = [row("a", 2, 2, 1), row("b", 1, 2, 1), row("c", 3, 3, 1)]
    rows = {(r["policy"], r["measure"]): r for r in summary("9x9", {"off": off, "chosen": on}, {"chosen": "LogN"})}
    assert {r["size"] for r in rows.values()} == {"9x9"} and rows["chosen", "found"]["setting"] == "LogN"
    assert rows["off", "count_error"]["mean"] == pytest.approx(1.0)  # 2, 0, 1
    error = rows["chosen", "count_error"]  # 0, 1, 0: changes -2, 1, -1
    assert error["mean"] == pytest.approx(1 / 3) and error["difference"] == pytest.approx(-2 / 3)
    assert (error["difference_low"], error["difference_high"]) == pytest.approx(mean(np.array([-2.0, 1, -1]))[1:])
    presence = rows["chosen", "presence"]
    assert presence["difference"] == pytest.approx(2 / 3) and presence["mean"] == 1
    assert rows["off", "presence"]["difference"] == "" and rows["off", "presence"]["captions"] == 3
    assert rows["chosen", "count"]["difference"] == pytest.approx(1 / 3)


def test_summary_of_images_that_are_no_pairs():
    off, on = [row("a", 1, 1, 1), row("b", 1, 1, 1)], [row("b", 1, 1, 1), row("a", 1, 1, 1)]
    with pytest.raises(ValueError, match="expected the captions and seeds of 'off' for 'LogN'"):
        summary("9x9", {"off": off, "LogN": on})


def test_the_best_policy():
    bad, good = [row("a", 2, 0, 0)], [row("a", 2, 1, 0)]
    assert best_policy({"off": bad, "LogN": good}) == "LogN"
    assert best_policy({"off": good, "LogN": good}) == "off"
    assert best_policy({"off": good, "LogN": [row("a", 2, 3, 1)]}) == "LogN"
