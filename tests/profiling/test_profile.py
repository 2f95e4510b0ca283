"""Measurements and summaries of a profile, on a tiny pipeline with random weights and on invented numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.profiling import ProfilePlan, layer_means, picture_rows, slopes, summarize
from entropy_attn.profiling.rows import over_heads
from entropy_attn.recorders.entropy import COLUMNS
from entropy_attn.scale import Constant, EntropyAdaptive, Fixed, LogN

KEYS = ["size", "height", "width", "policy", "seed"]


@pytest.fixture(scope="module")
def measured(tiny_pipe, tmp_path_factory):
    steps, runs = [], []
    result = ea.profile(
        tiny_pipe,
        sizes=[16, (32, 32), (32, 48)],
        scales=[None, LogN()],
        prompts=["a red circle", "two blue squares"],
        seeds=[0, 3],
        steps=2,
        heads=True,
        out=tmp_path_factory.mktemp("profile"),
        figures=False,
        on_step=steps.append,
        on_run=lambda *run: runs.append(run),
    )
    return result, steps, runs


def test_rows_name_the_run(measured):
    result, steps, runs = measured
    table = result.entropy
    assert list(table.columns) == [*KEYS, *COLUMNS]
    assert set(table["size"]) == {"16x16", "32x32", "32x48"}
    assert set(table["seed"]) == {0, 3} and set(table["step"]) == {0, 1}
    assert len(steps) == result.plan.total_steps == 24
    assert [(number, count) for _, _, number, count in runs] == [(n, 12) for n in range(1, 13)]
    assert (table["mean"] <= np.log(table["seqlen_k"]) + 1e-4).all() and (table["mean"] >= 0).all()


def test_token_counts_follow_the_image(measured):
    means = layer_means(measured[0].entropy)
    largest = means.groupby("size")["tokens"].max()
    assert largest.to_dict() == {"16x16": 64, "32x32": 256, "32x48": 384}


def test_recorded_scales_are_those_of_the_policy(measured):
    rows = picture_rows(measured[0].entropy)
    policies = list(measured[0].plan.policies)
    assert policies[0] == "off" and policies[1].startswith("LogN(")
    at_training_size = rows[rows["size"] == "32x32"]
    for scale in at_training_size["scale"]:
        assert scale == pytest.approx(1 / math.sqrt(16), rel=0.5)  # head dims 8 and 16
    by_policy = at_training_size.groupby(["policy", "layer"])["scale"].first()
    np.testing.assert_allclose(by_policy["off"], by_policy[policies[1]].reindex(by_policy["off"].index), rtol=1e-6)
    larger = rows[rows["size"] == "32x48"].groupby(["policy", "layer"])["scale"].first()
    assert (larger[policies[1]] > larger["off"]).all()


def test_pictures_and_maps(measured):
    result = measured[0]
    assert len(result.pictures) == 3 * 2 * 2
    for (size, _, _), pictures in result.pictures.items():
        assert [image.size for image in pictures] == [(size[1], size[0])] * 2
    assert set(result.maps) == set(result.plan.policies)
    assert {array.shape for array in result.maps["off"].values()} == {(16, 24), (8, 12), (4, 6)}
    for array in result.maps["off"].values():
        assert np.isfinite(array).all() and (array >= 0).all() and (array <= math.log(array.size) + 1e-4).all()


def test_the_maps_of_single_steps_are_kept_and_their_mean_is_the_map(measured):
    result = measured[0]
    kept = sorted((result.files["plan"].parent / "runs").glob("*/steps.npz"))
    runs = [json.loads((path.parent / "run.json").read_text()) for path in kept]
    assert [(run["size"], run["seed"]) for run in runs] == [("32x48", 0)] * 2
    for path, run in zip(kept, runs, strict=True):
        with np.load(path) as file:
            steps = {layer: values.astype(np.float32) for layer, values in file.items()}
        maps = result.maps[run["policy"]]
        assert list(steps) == list(maps)
        for layer, values in steps.items():
            assert values.shape == (2, *maps[layer].shape)
            np.testing.assert_allclose(values.mean(axis=0), maps[layer], atol=4e-3)  # half precision, up to 6 nats
            assert (values[0] != values[1]).any()


def test_the_pipeline_is_left_as_it_was(measured, tiny_pipe):
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tiny_pipe.unet.modules())


def test_files_have_the_returned_tables(measured):
    result = measured[0]
    assert result.files["entropy"].name == "entropy.csv.gz"
    pd.testing.assert_frame_equal(pd.read_csv(result.files["entropy"]), result.entropy, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(result.files["heads"]), result.heads, check_dtype=False)
    assert json.loads(result.files["summary"].read_text()) == json.loads(json.dumps(result.summary))
    layers = pd.read_csv(result.files["layers"])
    assert len(layers) == 3 * 2 * result.summary["layers_measured"]
    change = layers.query("size == '32x32' and policy == 'off'")["change"]
    assert change.tolist() == pytest.approx([0] * len(change), abs=1e-9)


def test_statistics_over_heads_equal_those_over_all_queries():
    random = np.random.default_rng(0)
    values = random.gamma(2.0, size=(3, 50))  # heads, queries
    rows = [
        {"layer": "a", "kind": "self", "step": 0, "branch": "all", "head": head, "seqlen_q": 50, "seqlen_k": 50,
         "scale": 0.1 * (head + 1), "mean": v.mean(), "std": v.std(), "min": v.min(), "max": v.max()}
        for head, v in enumerate(values)
    ]  # fmt: skip
    (row,) = over_heads(pd.DataFrame(rows)).to_dict("records")
    expected = {"heads": 3, "mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max(),
                "scale": 0.2, "head_min": values.mean(1).min(), "head_max": values.mean(1).max()}  # fmt: skip
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_slopes_are_fitted_per_layer():
    """Two layers with constant entropy, the larger with a higher one: a line through both would have slope 1.4."""
    rows = [
        {"policy": "off", "size": str(n), "layer": layer, "ln_tokens": math.log(n * factor), "entropy": entropy}
        for n in (64, 256)
        for layer, factor, entropy in (("small", 1, 1.0), ("large", 16, 5.0))
    ]
    assert slopes(pd.DataFrame(rows))["slope"].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    alone = slopes(pd.DataFrame(rows[:2]))
    assert alone["slope"].isna().all() and alone["points"].tolist() == [1, 1]


def test_summary_of_invented_lines(invented):
    summary = summarize(invented)
    for policy, slope in (("off", 0.6), ("logn", 0.5)):
        found = summary["slope"][policy]
        assert found["layers"] == 5
        assert [found[name] for name in ("median", "lower_quartile", "min", "max")] == pytest.approx([slope] * 4)
    # logn's line is 0.5 ln N + 0.8, off's 0.6 ln N + 0.4
    tokens = np.array([1024, 256, 64, 256, 1024]) / 4  # at 64 px, the training size
    larger = 0.5 * np.log(tokens * 4) + 0.8 - (0.6 * np.log(tokens) + 0.4)
    found = summary["change_from_training"]["logn"]["128x128"]
    assert found["median"] == pytest.approx(np.median(larger)) and found["layers"] == 5
    assert found["mean_distance"] == pytest.approx(np.abs(larger).mean())
    assert summary["change_from_training"]["off"]["64x64"]["mean_distance"] == pytest.approx(0.0)


def test_every_file_can_be_read_by_the_adaptive_policy(measured, tiny_pipe, tmp_path):
    full = measured[0]
    plain = ea.profile(
        tiny_pipe, sizes=[16], scales=["off"], prompts=["a red circle", "two blue squares"], steps=2, out=tmp_path,
        figures=False,
    )  # fmt: skip
    assert list(plain.entropy.columns)[5:9] == ["layer", "kind", "step", "branch"] and "head" not in plain.entropy
    policies = [
        EntropyAdaptive(tmp_path),
        EntropyAdaptive(plain.files["entropy"]),
        EntropyAdaptive(plain.files["heads"]),
        EntropyAdaptive(plain.heads),
        EntropyAdaptive(full.entropy.query("seed == 0"), size="16x16", policy="off"),
    ]
    layers = dict(policies[0].profile.layers)
    assert set(layers) == set(plain.heads["layer"])
    for policy in policies[1:]:
        for name, means in policy.profile.layers:
            assert means == pytest.approx(layers[name], rel=1e-4)
    EntropyAdaptive(full.files["entropy"], size="16x16", policy="off", step=1)
    with pytest.raises(
        ValueError, match=r"step: expected None, because heads\.csv has only means over all steps.*--heads"
    ):
        EntropyAdaptive(tmp_path, step=1)
    plain.files["heads"].unlink()
    with pytest.raises(ValueError, match=r"expected heads\.csv beside .*means over heads"):
        EntropyAdaptive(plain.files["entropy"])


@pytest.mark.parametrize("change", [{"sizes": []}, {"policies": {}}, {"seeds": []}, {"steps": 0}, {"prompts": [" "]}])
def test_an_empty_plan_is_refused(change):
    plan = {"sizes": [(8, 8)], "policies": {"off": None}, "prompts": ["a"], **change}
    with pytest.raises(ValueError, match=next(iter(change))):
        ProfilePlan(**plan)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sizes": [30]}, ValueError, "size 30x30: both sides must be multiples of 8 px"),
        ({"sizes": "32"}, TypeError, "sizes: expected a list of sizes, got '32'"),
        ({"sizes": [(1, 2, 3)]}, TypeError, r"sizes: expected .*, got \(1, 2, 3\)"),
        ({"sizes": [16, (16, 16)]}, ValueError, r"sizes: expected different values, got"),
        ({"sizes": [2**20]}, ValueError, r"size 1048576x1048576 needs at least .* GiB \(weights .*VAE decode.*has"),
        ({"scales": "off"}, TypeError, "scales: expected a list of policies"),
        ({"scales": ["of"]}, ValueError, "scale: expected one of .*got 'of'"),
        ({"scales": [0.2]}, TypeError, r"for a number: Fixed\(number\)"),
        ({"scales": [None, "off"]}, ValueError, "scales: expected different policies, got 'off' twice"),
        ({"seeds": [-1]}, ValueError, r"seeds: expected whole numbers from 0 to .*, got \[-1\]"),
        ({"prompts": "a"}, ValueError, "prompts: expected a list of texts that are not empty, got 'a'"),
        ({"prompts": []}, ValueError, "prompts: expected at least one for StableDiffusionPipeline"),
        (
            {"arguments": {"num_frames": 9}},
            ValueError,
            "arguments: expected those of StableDiffusionPipeline.*got 'num_frames'",
        ),
        ({"arguments": {"height": 9}}, ValueError, "which the plan sets, got 'height'"),
        ({"negative_prompt": "b", "guidance_scale": 1.0}, ValueError, "guidance_scale: expected more than 1"),
        ({"resume": True}, ValueError, "out: expected the folder of the profile with resume=True, got None"),
        ({"scales": {"mine": lambda info: 1 / 0}}, ZeroDivisionError, "division"),
    ],
)
def test_bad_arguments_are_refused_before_sampling(tiny_pipe, monkeypatch, options, error, message):
    def sampled(*_, **__):
        raise AssertionError("sampled")

    monkeypatch.setattr(tiny_pipe.unet, "forward", sampled)
    with pytest.raises(error, match=message):
        ea.profile(tiny_pipe, **{"sizes": [16], "prompts": ["a"], "steps": 1, **options})


def test_a_policy_that_a_layer_refuses_is_refused_before_sampling(tiny_pipe, tmp_path):
    first = ea.profile(tiny_pipe, sizes=[16], scales=["off"], prompts=["a"], steps=1)
    some = first.heads[first.heads["layer"] == first.heads["layer"].iloc[0]]
    with pytest.raises(ValueError, match=r"scale 'mine' at 16x16: layer .*expected one in the profile"):
        ea.profile(tiny_pipe, sizes=[16], scales={"mine": EntropyAdaptive(some)}, prompts=["a"], out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_notes_say_when_the_default_scale_or_the_training_size_is_missing(tiny_pipe):
    given = {"prompts": ["a"], "steps": 1, "pictures": False}
    found = ea.profile(tiny_pipe, sizes=[16], scales=[Fixed()], **given)
    assert any("not compared with the training size, 32x32 px" in note for note in found.notes)
    assert not found.pictures and found.summary["change_from_training"]["off"]["16x16"]["median"] is None
    found = ea.profile(tiny_pipe, sizes=[16, 32], scales={"x": Constant(1.1)}, **given)
    assert any("compared with the same policy" in note for note in found.notes)
    assert found.summary["change_from_training"]["x"]["32x32"]["mean_distance"] == pytest.approx(0.0)
