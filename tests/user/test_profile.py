"""What a profile measures and says, on a tiny pipeline with random weights and on invented numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("diffusers")

from entropy_attn.profile import (
    ProfilePlan,
    fit_line,
    layer_means,
    run_profile,
    save_data,
    self_attention_rows,
    summarize,
)
from entropy_attn.scale import Fixed, LogN

RECORDER_COLUMNS = "layer kind step branch head seqlen_q seqlen_k scale mean std min max".split()


@pytest.fixture(scope="module")
def measured(tiny_pipe):
    plan = ProfilePlan(
        sizes=[(16, 16), (32, 32), (32, 48)],
        policies={"off": Fixed(), "logn": LogN()},
        prompts=["a red circle", "two blue squares"],
        seeds=[0, 3],
        steps=2,
    )
    steps = []
    result = run_profile(tiny_pipe, plan, lambda size, policy: steps.append((size, policy)))
    return result, steps


def test_rows_carry_what_was_run(measured):
    result, steps = measured
    table = result.entropy
    assert list(table.columns) == ["size", "height", "width", "policy", "seed", *RECORDER_COLUMNS]
    assert set(table["size"]) == {"16x16", "32x32", "32x48"}
    assert set(table["seed"]) == {0, 3} and set(table["step"]) == {0, 1}
    assert len(steps) == result.plan.total_steps == 24
    assert (table["mean"] <= np.log(table["seqlen_k"]) + 1e-4).all() and (table["mean"] >= 0).all()


def test_token_counts_follow_the_picture(measured):
    means = layer_means(measured[0].entropy)
    largest = means.groupby("size")["tokens"].max()
    assert largest.to_dict() == {"16x16": 64, "32x32": 256, "32x48": 384}


def test_the_scale_that_was_used_is_the_policy(measured):
    rows = self_attention_rows(measured[0].entropy)
    at_training_size = rows[rows["size"] == "32x32"]
    for scale in at_training_size["scale"]:
        assert scale == pytest.approx(1 / math.sqrt(16), rel=0.5)  # head dims 8 and 16
    by_policy = at_training_size.groupby(["policy", "layer"])["scale"].first()
    np.testing.assert_allclose(by_policy["off"], by_policy["logn"].reindex(by_policy["off"].index), rtol=1e-6)
    larger = rows[rows["size"] == "32x48"].groupby(["policy", "layer"])["scale"].first()
    assert (larger["logn"] > larger["off"]).all()


def test_pictures_and_maps(measured):
    result, _ = measured
    assert len(result.pictures) == 3 * 2 * 2
    for (size, _, _), pictures in result.pictures.items():
        assert [picture.size for picture in pictures] == [(size[1], size[0])] * 2
    assert set(result.maps) == {"off", "logn"}
    shapes = {array.shape for array in result.maps["off"].values()}
    assert shapes == {(16, 24), (8, 12), (4, 6)}
    for array in result.maps["off"].values():
        assert np.isfinite(array).all() and (array >= 0).all() and (array <= math.log(array.size) + 1e-4).all()


def test_the_pipeline_is_left_as_it_was(measured, tiny_pipe):
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tiny_pipe.unet.modules())


def test_summary_is_plain_json_and_agrees_with_the_table(measured, tmp_path):
    result, _ = measured
    summary = summarize(result)
    files = save_data(result, summary, tmp_path)
    read = json.loads(files["summary"].read_text())
    assert read["mean_entropy"].keys() == {"off", "logn"}
    pd.testing.assert_frame_equal(pd.read_csv(files["entropy"]), result.entropy, check_dtype=False)
    assert read["fit"]["off"]["points"] == len(layer_means(result.entropy).query("policy == 'off'"))
    assert read["seconds_total"] == pytest.approx(result.runs["seconds"].sum())


def test_fit_recovers_the_line_and_ignores_cross_and_unconditional_rows(invented):
    fit = summarize(invented)["fit"]
    assert fit["off"]["slope"] == pytest.approx(0.6) and fit["off"]["intercept"] == pytest.approx(0.4)
    assert fit["logn"]["slope"] == pytest.approx(0.5) and fit["logn"]["r2"] == pytest.approx(1.0)


def test_fit_line_says_what_the_points_leave_open():
    assert fit_line([1.0, 1.0], [2.0, 3.0]) == {"slope": None, "intercept": None, "r2": None, "points": 2}
    flat = fit_line([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert flat["slope"] == pytest.approx(0.0, abs=1e-12) and flat["r2"] is None
    noisy = fit_line([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 0.0, 1.0])
    assert noisy["slope"] == pytest.approx(0.2) and noisy["r2"] == pytest.approx(0.2)


@pytest.mark.parametrize("change", [{"sizes": []}, {"policies": {}}, {"prompts": []}, {"seeds": []}, {"steps": 0}])
def test_an_empty_plan_is_refused(change):
    plan = {"sizes": [(8, 8)], "policies": {"off": None}, "prompts": ["a"], **change}
    with pytest.raises(ValueError, match=next(iter(change))):
        ProfilePlan(**plan)
