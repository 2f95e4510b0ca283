"""Scales from a recorded profile: reading it, the formula against numbers by hand, and the effect on a pipeline."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import pickle
from pathlib import Path

import pandas as pd
import pytest
import torch

import entropy_attn as ea
from entropy_attn.recorders.entropy import COLUMNS
from entropy_attn.scale import CallInfo, EntropyAdaptive, Layers, LogN, Product

INFO = CallInfo(layer="a", kind="self", seqlen_q=64, seqlen_k=64, num_heads=2, head_dim=64, train_tokens=64)
ENTROPIES = {"a": (1.0, 3.0), "b": (2.0, 5.0)}


def row(layer: str, head: int, mean: float, **changes: object) -> dict[str, object]:
    values = {"layer": layer, "kind": "self", "step": 0, "branch": "cond", "head": head, "seqlen_q": 64, "seqlen_k": 64}
    return {**dict.fromkeys(COLUMNS, 0.1), **values, "mean": mean, **changes}


def rows(**changes: object) -> list[dict[str, object]]:
    return [row(layer, head, mean, **changes) for layer, means in ENTROPIES.items() for head, mean in enumerate(means)]


def write(path: Path, table: list[dict[str, object]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(table))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return path


def factors(policy: EntropyAdaptive, layer: str = "a", heads: int = 2) -> list[float]:
    return (policy(dataclasses.replace(INFO, layer=layer, num_heads=heads)) * 8).tolist()


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(rows())


def test_by_hand(frame):
    policy = EntropyAdaptive(frame)  # entropies are between 1 and 5
    assert factors(policy, "a") == pytest.approx([1 + 0.3 * 1.0, 1 + 0.3 * 0.5**2])
    assert factors(policy, "b") == pytest.approx([1 + 0.3 * 0.75**2, 1.0])
    linear = EntropyAdaptive(frame, gamma=1.0, lambda_min=1.1, lambda_max=1.5)
    assert factors(linear, "a") == pytest.approx([1.5, 1.3])


def test_entropies_outside_the_given_range_are_clamped(frame):
    policy = EntropyAdaptive(frame, h_min=2.0, h_max=4.0, gamma=1.0)
    assert factors(policy, "a") == pytest.approx([1.3, 1.15])
    assert factors(policy, "b") == pytest.approx([1.3, 1.0])


def test_entropies_relative_to_the_largest_possible_ones(frame):
    frame.loc[frame["layer"] == "b", "seqlen_k"] = 4096  # ln 4096 = 2 ln 64
    policy = EntropyAdaptive(frame, relative=True, gamma=1.0)
    low, high = 1 / math.log(64), 3 / math.log(64)
    part = (high - 2.5 / math.log(64)) / (high - low)
    assert factors(policy, "b") == pytest.approx([1.3, 1 + 0.3 * part], rel=1e-6)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_files_give_the_same_policy_as_frames(tmp_path, frame, suffix: str):
    policy = EntropyAdaptive(write(tmp_path / f"profile{suffix}", rows()))
    assert factors(policy, "b") == factors(EntropyAdaptive(frame), "b")
    assert repr(policy.profile) == f"<profile{suffix}: 2 layers>"
    assert EntropyAdaptive(str(tmp_path / f"profile{suffix}")) == policy


def test_means_over_steps_and_seeds_of_the_conditional_half(frame):
    later = pd.DataFrame(rows(step=1)).assign(mean=lambda table: table["mean"] + 2)
    other_half = pd.DataFrame(rows(branch="uncond")).assign(mean=100.0)
    cross = pd.DataFrame([row("c", 0, 0.0, kind="cross", seqlen_k=77)])
    policy = EntropyAdaptive(pd.concat([frame, later, other_half, cross]))
    assert policy.profile.layers == (("a", (2.0, 4.0)), ("b", (3.0, 6.0)))
    assert EntropyAdaptive(pd.concat([frame, later]), step=1).profile.layers == (("a", (3.0, 5.0)), ("b", (4.0, 7.0)))
    with pytest.raises(ValueError, match="got 100 and 100"):
        EntropyAdaptive(pd.concat([frame, other_half]), branch="uncond")


def test_a_profile_of_several_sizes_or_policies_needs_a_choice(frame):
    both = pd.concat([frame.assign(size="64x64"), pd.DataFrame(rows(seqlen_k=256)).assign(size="128x128", mean=9.0)])
    with pytest.raises(ValueError, match="size: expected one of 64x64, 128x128"):
        EntropyAdaptive(both)
    with pytest.raises(ValueError, match="one size of layer 'a', got 64 and 256 keys"):
        EntropyAdaptive(both.drop(columns="size"))
    assert EntropyAdaptive(both, size="64x64").profile.layers == EntropyAdaptive(frame).profile.layers
    with pytest.raises(ValueError, match="policy: expected one of logn, which profile DataFrame has, got 'off'"):
        EntropyAdaptive(frame.assign(policy="logn"), policy="off")


def test_layers_without_a_profile(frame):
    with pytest.raises(ValueError, match=r"profile <DataFrame: 2 layers>.*'a', got 'z'; missing='leave'"):
        EntropyAdaptive(frame)(dataclasses.replace(INFO, layer="z"))
    assert EntropyAdaptive(frame, missing="leave")(dataclasses.replace(INFO, layer="z")) is None
    with pytest.raises(ValueError, match=r"layer 'a': expected 2 heads.*got 3"):
        factors(EntropyAdaptive(frame), heads=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gamma": 0}, ValueError, "gamma: expected .*got 0"),
        ({"lambda_max": "1"}, TypeError, "lambda_max: expected .*got '1'"),
        ({"missing": "skip"}, ValueError, "missing: expected .*got 'skip'"),
        ({"h_min": 6.0}, ValueError, "expected h_min < h_max, got 6 and 5"),
        ({"h_max": math.nan}, ValueError, "h_max: expected .*got nan"),
        ({"step": 1.0}, TypeError, "step: expected .*got 1.0"),
        ({"step": 4}, ValueError, "step: expected one of 0, which profile DataFrame has, got 4"),
        ({"branch": "all"}, ValueError, "branch: expected .*got 'all'"),
        ({"relative": 1}, TypeError, "relative: expected .*got 1"),
    ],
)
def test_refuses(frame, options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        EntropyAdaptive(frame, **options)


def test_refuses_invalid_profiles(tmp_path, frame):
    (tmp_path / "words.json").write_text("words")
    (tmp_path / "empty.csv").write_text("layer,kind\n")
    for profile, error, message in (
        (7, TypeError, "profile: expected .*got 7"),
        (tmp_path / "none.csv", ValueError, "profile: cannot read .*No such file"),
        (tmp_path / "profile.txt", ValueError, "csv.gz or .json"),
        (tmp_path / "words.json", ValueError, "expected a table, got"),
        (tmp_path / "empty.csv", ValueError, "expected at least one row, got none"),
        (frame.drop(columns=["mean", "head"]), ValueError, "the column 'head', 'mean'"),
        (frame.assign(kind="cross"), ValueError, "expected rows of self-attention"),
        (frame.assign(mean=math.nan), ValueError, "expected finite entropies, got nan"),
        (frame[frame["head"] == 1], ValueError, r"got \[1\]"),
        (ea.EntropyRecorder(), ValueError, "at least one recorded call"),
    ):
        with pytest.raises(error, match=message):
            EntropyAdaptive(profile)


def test_policies_compare_by_value(frame):
    policy = EntropyAdaptive(frame)
    assert policy == EntropyAdaptive(frame.copy()) and hash(policy) == hash(EntropyAdaptive(frame.copy()))
    assert policy != EntropyAdaptive(frame, gamma=1.0)
    for copied in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy)), dataclasses.replace(policy)):
        assert copied == policy and factors(copied) == factors(policy)
    assert factors(dataclasses.replace(policy, lambda_max=2.0), "a")[0] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="expected the file or recorder again"):
        dataclasses.replace(policy, step=0)


def test_with_the_papers_scale(frame):
    larger = dataclasses.replace(INFO, seqlen_k=4096)  # log_64 4096 = 2
    scales = Product(LogN(), Layers({"^a$": EntropyAdaptive(frame)}))(larger)
    assert (scales * 8).tolist() == pytest.approx([1.3 * math.sqrt(2), 1.075 * math.sqrt(2)], rel=1e-6)


@torch.no_grad()
def test_profile_once_and_apply(tmp_path):
    """The entropies of the selected heads fall; the head with the highest entropy keeps its scale."""
    pipe = ea.shapes.load_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def record(scale: object) -> ea.EntropyRecorder:
        recorder = ea.EntropyRecorder()
        with ea.apply(pipe, scale=scale, record=recorder):
            pipe("two red circles", num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt")
        return recorder

    recorder = record(None)
    policy = EntropyAdaptive(recorder, relative=True)
    saved = EntropyAdaptive(recorder.save(tmp_path / "profile.csv"), relative=True)
    assert saved.profile.layers == policy.profile.layers
    before, after = (
        table[table["branch"] == "cond"] for table in (recorder.to_dataframe(), record(saved).to_dataframe())
    )
    self_attention = before["kind"] == "self"
    factor = after["scale"] / before["scale"]
    assert factor[~self_attention].eq(1.0).all()
    assert factor[self_attention].min() == pytest.approx(1.0) and factor[self_attention].max() == pytest.approx(1.3)

    # The first layer has the same input in both runs, so the entropy of each head falls.
    first = self_attention & (before["layer"] == before["layer"].iloc[0])
    sharper = first & (factor > 1.0)
    assert sharper.any() and (after["mean"] < before["mean"])[sharper].all()
    # In later layers the inputs differ, but the mean is still lower.
    assert after["mean"][self_attention].mean() < before["mean"][self_attention].mean()
