"""The rows of the tables by hand."""

from __future__ import annotations

import math

import pytest

from entropy_attn.evaluation.guidance_metrics import mean_rows, repair_rows
from entropy_attn.evaluation.statistics import proportion


def images(metric: str, values: list[float]) -> dict[tuple[int, int], dict[str, float]]:
    return {(prompt, 0): {metric: value} for prompt, value in enumerate(values)}


OFF = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
ARM = [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
SEED = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
SCORES = {name: images("presence", values) for name, values in (("off", OFF), ("arm", ARM), ("seed", SEED))}


def test_means_differences_and_tests():
    rows = {row["arm"]: row for row in mean_rows(SCORES, "off")}
    assert [rows[arm]["value"] for arm in SCORES] == [0.3, 0.8, 0.2]
    assert rows["off"]["value_low"] == proportion(3, 10).low
    assert rows["arm"]["difference"] == pytest.approx(0.5) and rows["seed"]["difference"] == pytest.approx(-0.1)
    # Six of seven that differ are won: 2 * (1 + 7) / 2^7; of three, one
    assert rows["arm"]["p"] == pytest.approx(2 * 8 / 128)
    assert rows["seed"]["p"] == 1.0
    assert rows["arm"]["p_holm"] == pytest.approx(2 * 2 * 8 / 128) and rows["seed"]["p_holm"] == 1.0
    assert math.isnan(rows["off"]["p"]) and math.isnan(rows["off"]["difference"])


def test_a_metric_of_one_prompt_has_no_interval():
    scores = {name: {(0, 0): {"TIFA": value}, (1, 0): {}} for name, value in (("off", 0.25), ("arm", 0.75))}
    rows = mean_rows(scores, "off")
    assert [row["value"] for row in rows] == [0.25, 0.75] and all(math.isnan(row["value_low"]) for row in rows)
    assert all(math.isnan(row["p"]) for row in rows)


def test_repetitions_of_a_prompt_are_drawn_together():
    scores = {"off": {(p, s): {"CLIP": float(p)} for p in range(4) for s in range(50)}}
    (row,) = mean_rows(scores, "off")
    assert row["value"] == 1.5 and row["value_high"] - row["value_low"] > 1.5  # of four values, not of 200


def test_repair_and_damage():
    rows = {row["arm"]: row for row in repair_rows(SCORES, "off")}
    assert list(rows) == ["arm", "seed"]
    arm, seed = rows["arm"], rows["seed"]
    assert (arm["failed"], arm["repaired"], arm["succeeded"], arm["damaged"]) == (7, 6, 3, 1)
    assert (seed["failed"], seed["repaired"], seed["succeeded"], seed["damaged"]) == (7, 1, 3, 2)
    assert arm["repaired_share"] == pytest.approx(6 / 7) and arm["damaged_share_high"] == proportion(1, 3).high
    assert repair_rows({"off": images("TIFA", OFF), "arm": images("TIFA", ARM)}, "off") == []
    perfect = {"off": images("binding", [1.0, 1.0]), "arm": images("binding", [1.0, 0.0])}
    (row,) = repair_rows(perfect, "off")
    assert (row["failed"], row["repaired"]) == (0, 0) and math.isnan(row["repaired_share"])
