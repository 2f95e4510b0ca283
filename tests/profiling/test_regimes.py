"""The regime of each layer: from invented numbers by hand, and in the profile of a tiny pipeline."""

from __future__ import annotations

import dataclasses
import json
import math

import pandas as pd
import pytest

pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.profiling import ProfilePlan, Run
from entropy_attn.profiling.regimes import hold_factor, policy_file, regime_of, regimes, verdict
from entropy_attn.scale import CallInfo, LayerFactors, LogN

PLAN = ProfilePlan([(64, 64), (128, 128)], {"off": None, "logn": LogN()}, ["a"], steps=4, reference=(64, 64),
                   regime_steps=2)  # fmt: skip
LAYERS = {  # (T, logit_std, entropy at 64, at 128, response, entropy at 128 under LogN)
    "averaging": (256, 0.5, 5.4, 6.8, 0.25, 6.77),
    "responsive": (64, 1.84, 2.6, 3.4, 2.0, 3.15),
    "one-hot": (16, 59.0, 0.2, 0.5, 0.005, 0.5),
}


def measured() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(response, entropy) of two heads, two branches and the two measured steps, around the numbers above."""
    response, entropy = [], []
    for size, side in (("64x64", 64), ("128x128", 128)):
        for layer, (trained, std, small, large, answer, held) in LAYERS.items():
            keys = {"size": size, "height": side, "width": side, "seed": 0, "layer": layer, "kind": "self"}
            tokens, value = (trained, small) if side == 64 else (4 * trained, large)
            for branch in ("uncond", "cond"):
                for step in (1, 3):
                    for head, by in ((0, -0.1), (1, 0.1)):
                        wrong = 100.0 if branch == "uncond" else 0.0
                        row = {"branch": branch, "step": step, "head": head, "seqlen_q": tokens, "seqlen_k": tokens}
                        response.append({
                            **keys, **row, "policy": "off", "text_tokens": 0, "train_tokens": trained, "scale": 0.1,
                            "entropy": value + by + wrong, "response": answer * (1 + by), "logit_std": std * (1 - by),
                        })  # fmt: skip
                for step in range(4):
                    off = 50.0 if step in (0, 2) else 0.0  # not at the measured steps
                    row = {"branch": branch, "step": step, "seqlen_k": tokens}
                    entropy.append({**keys, **row, "policy": "logn", "mean": (small if side == 64 else held) + off})
    response = pd.DataFrame(response)
    response["train_tokens"] = response["train_tokens"].astype("Int64")
    return response, pd.DataFrame(entropy)


@pytest.fixture
def table():
    return regimes(*measured(), PLAN)


def test_by_hand(table):
    rows = table[table["size"] == "128x128"].set_index("layer")
    for layer, (trained, std, small, large, answer, held) in LAYERS.items():
        row = rows.loc[layer]
        assert row["regime"] == layer
        assert (row["heads"], row["responsive_heads"]) == (2, 2 if layer == "responsive" else 0)
        assert (row["tokens"], row["train_tokens"]) == (4 * trained, trained)
        assert row["std_ratio"] == pytest.approx(std / math.sqrt(2 * math.log(trained)))
        assert row["entropy"] == pytest.approx(large) and row["drift"] == pytest.approx(large - small)
        assert row["response"] == pytest.approx(answer) and row["logit_std"] == pytest.approx(std)
        factor = math.sqrt(math.log(4 * trained) / math.log(trained))
        assert row["logn_factor"] == pytest.approx(factor)
        assert row["logn_predicted"] == pytest.approx(answer * math.log(factor) / (large - small))
        assert row["logn_measured"] == pytest.approx((large - held) / (large - small))
    assert rows.loc["averaging", ["hold_factor", "hold"]].tolist() == [2.0, "bounded"]
    assert rows.loc["one-hot", ["hold_factor", "hold"]].tolist() == [1.0, "no response"]
    assert rows.loc["responsive", "hold"] == "holds"
    assert rows.loc["responsive", "hold_factor"] == pytest.approx(math.exp(0.8 / 2.0))
    trained = table[table["size"] == "64x64"]
    assert (trained["hold_factor"] == 1).all() and trained["logn_predicted"].isna().all()
    assert (trained["drift"] == 0).all() and trained["regime"].tolist() == list(LAYERS)


def test_heads_are_counted_by_themselves():
    response, entropy = measured()
    of_one = (response["layer"] == "averaging") & (response["head"] == 1)
    response.loc[of_one, "logit_std"] = 1.5  # 1.5 / 3.33 = 0.45
    row = regimes(response, entropy, PLAN).iloc[0]
    assert row["regime"] == "averaging" and (row["heads"], row["responsive_heads"]) == (2, 1)


def test_the_verdict(table):
    undone = sum(row[4] * math.log(math.sqrt(math.log(4 * row[0]) / math.log(row[0]))) for row in LAYERS.values())
    did = sum(row[3] - row[5] for row in LAYERS.values())
    drift = sum(row[3] - row[2] for row in LAYERS.values())
    assert verdict(table, "128x128") == (
        f"128x128: LogN can undo {undone / drift:.0%} of the drift of this model's entropy (measured: "
        f"{did / drift:.0%}); 1 of 3 layers is responsive; to first order, factors from 0.5 to 2 hold 1"
    )
    assert verdict(table, "64x64") == "64x64: 1 of 3 layers is responsive"


@pytest.mark.parametrize(
    ("ratio", "name"), [(0.39, "averaging"), (0.4, "responsive"), (1.6, "responsive"), (1.7, "one-hot")]
)
def test_the_band(ratio, name):
    assert regime_of(ratio) == name


def test_the_step_that_holds():
    assert hold_factor(-0.4, 1.0) == (pytest.approx(math.exp(-0.4)), "holds")
    assert hold_factor(-4.0, 1.0) == (0.5, "bounded")
    assert hold_factor(0.0, 0.0) == (1.0, "holds")
    assert hold_factor(0.5, -0.1) == (1.0, "no response")
    assert math.isnan(hold_factor(math.nan, 1.0)[0])


def test_what_is_not_known_is_empty():
    response, entropy = measured()
    response["train_tokens"] = pd.array([None] * len(response), dtype="Int64")
    unknown = regimes(response, entropy, dataclasses.replace(PLAN, reference=None, policies={"off": None}))
    for column in ("drift", "logn_factor", "logn_predicted", "logn_measured", "hold_factor"):
        assert unknown[column].isna().all(), column
    assert set(unknown["hold"]) == {"unknown"} and policy_file(unknown, {}) is None
    large = unknown[unknown["size"] == "128x128"].set_index("layer")
    assert large.loc["responsive", "std_ratio"] == pytest.approx(1.84 / math.sqrt(2 * math.log(256)))  # of this size
    assert verdict(unknown, "128x128") == "128x128: 1 of 3 layers is responsive"


def test_text_counts_among_the_keys_and_not_in_n():
    response, entropy = measured()
    response["text_tokens"], response["kind"] = 77, "joint"
    response["seqlen_k"] += 77
    row = regimes(response, entropy, PLAN).iloc[0]
    assert row["tokens"] == row["train_tokens"] == 256
    assert row["std_ratio"] == pytest.approx(0.5 / math.sqrt(2 * math.log(256 + 77)))


def test_the_policy_file_is_read_back(table, tmp_path):
    path = tmp_path / "hold.json"
    path.write_text(json.dumps(policy_file(table, {"model": "x"})))
    policy = LayerFactors(path)
    for row in table.itertuples():
        info = CallInfo(row.layer, "self", row.tokens, row.tokens, 2, 64, train_tokens=row.train_tokens)
        assert policy(info) == pytest.approx(row.hold_factor / 8, rel=1e-5)


def test_steps_are_spread_over_the_generation():
    def at(steps: int, count: int) -> tuple[int, ...]:
        return ProfilePlan([(8, 8)], {"off": None}, ["a"], steps=steps, regime_steps=count).regime_at

    assert at(15, 3) == (2, 7, 12) and at(4, 3) == (0, 2, 3) and at(2, 3) == (0, 1) and at(9, 0) == ()
    with pytest.raises(ValueError, match=r"regime_steps: expected a whole number from 0, got -1"):
        at(4, -1)


def test_only_the_default_scale_is_measured():
    plan = ProfilePlan([(8, 8)], {"logn": LogN(), "plain": None}, ["a"], regime_steps=3)
    assert [plan.measures_regime(run) for run in plan.runs()] == [False, True]
    assert not dataclasses.replace(plan, regime_steps=0).measures_regime(Run((8, 8), "plain", 0))


@pytest.fixture(scope="module")
def profiled(tiny_pipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("regimes")
    found = ea.profile(tiny_pipe, sizes=[16, 32], scales=["off", "logn"], prompts=["a"], seeds=[0, 1], steps=3,
                       pictures=False, regime_steps=2, out=out, figures=False)  # fmt: skip
    return found, out


def test_files_of_a_profile(profiled, tiny_pipe):
    found, out = profiled
    raw = pd.read_csv(out / "response.csv.gz", dtype={"train_tokens": "Int64"})
    pd.testing.assert_frame_equal(raw, found.response, check_dtype=False)
    assert set(raw["policy"]) == {"off"} and set(raw["step"]) == {0, 2} and set(raw["seed"]) == {0, 1}
    same = found.entropy[(found.entropy["policy"] == "off") & found.entropy["step"].isin([0, 2])]
    same = same[same["kind"] == "self"].groupby(["size", "layer"])["mean"].mean()
    assert raw.groupby(["size", "layer"])["entropy"].mean().to_dict() == pytest.approx(same.to_dict(), rel=1e-4)
    table = pd.read_csv(out / "regimes.csv")
    assert len(table) == 2 * found.summary["layers_measured"] and list(table.columns) == list(found.regimes.columns)
    in_summary = json.loads((out / "summary.json").read_text())["regimes"]
    assert in_summary["16x16"]["verdict"] == verdict(found.regimes, "16x16")
    counts = [in_summary["16x16"][name] for name in ("averaging", "responsive", "one-hot")]
    assert sum(counts) == found.summary["layers_measured"] == len(in_summary["16x16"]["layers"])
    held = ea.profile(tiny_pipe, sizes=[16, 32], scales=["off", str(out / "hold-entropy.json")], prompts=["a"], steps=1,
                      pictures=False)  # fmt: skip
    assert held.regimes["logn_measured"].isna().all()  # it was not run
    with pytest.raises(ValueError, match=r"at 24x24: layer .*image tokens, for which there are factors, got"):
        ea.profile(tiny_pipe, sizes=[24], scales=[str(out / "hold-entropy.json")], prompts=["a"], steps=1)


def test_a_profile_without_them(tiny_pipe, tmp_path, profiled):
    stale = [tmp_path / name for name in ("regimes.csv", "response.csv.gz", "hold-entropy.json", "layer_regimes.png")]
    for path in stale:
        path.write_text("of an earlier profile")
    given = {"sizes": [16], "prompts": ["a"], "steps": 1, "pictures": False}
    found = ea.profile(tiny_pipe, scales=["off"], regime_steps=0, out=tmp_path, **given)
    assert found.regimes is None and found.response is None and found.summary["regimes"] is None
    assert not any(path.exists() for path in stale) and not {"regimes", "response", "hold"} & set(found.files)
    assert not any("regimes" in note for note in found.notes)
    found = ea.profile(tiny_pipe, scales=["logn"], **given)
    assert found.regimes is None
    assert any("regimes not measured: the model's default scale, 'off', is not among" in note for note in found.notes)


def test_they_are_resumed(tiny_pipe, profiled, tmp_path):
    class Stop(Exception):
        pass

    def stop(run, seconds, number, of):
        if number == 3:
            raise Stop

    given = {"sizes": [16, 32], "scales": ["off", "logn"], "prompts": ["a"], "seeds": [0, 1], "steps": 3,
             "pictures": False, "regime_steps": 2, "out": tmp_path, "figures": False}  # fmt: skip
    with pytest.raises(Stop):
        ea.profile(tiny_pipe, **given, on_run=stop)
    with pytest.raises(ValueError, match=r"expected regime_steps=2, as in .*, got 3"):
        ea.profile(tiny_pipe, **{**given, "regime_steps": 3}, resume=True)
    resumed = ea.profile(tiny_pipe, **given, resume=True)
    pd.testing.assert_frame_equal(resumed.regimes, profiled[0].regimes, rtol=1e-3, check_dtype=False)
