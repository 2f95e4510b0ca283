"""The command line: files, JSON, tables and help."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("typer")
pytest.importorskip("diffusers")

from entropy_attn.cli import main
from tests.support.figures import FIGURES


@pytest.fixture(scope="module")
def profiled(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "made" / "for me"
    arguments = ["profile", "--model", str(tiny_model), "--sizes", "16,32"]
    arguments += ["--scale", "off", "--scale", "logn:strength=0.5"]
    done = _run([*arguments, "--prompt", "a", "--prompt", "b", "--steps", "2", "--json", "--out", str(out)])
    assert done.returncode == 0, done.stderr
    return out, done


def _run(arguments):
    return subprocess.run(
        [sys.executable, "-m", "entropy_attn", *arguments], capture_output=True, text=True, check=False
    )


def test_profile_writes_everything(profiled):
    out, _ = profiled
    tables = {"entropy.csv", "heads.csv", "layers.csv", "response.csv.gz", "regimes.csv"}
    tables |= {"hold-entropy.json", "summary.json", "plan.json", "runs"}
    assert {path.name for path in out.iterdir()} == {*tables, *(f"{name}.png" for name in FIGURES)}
    table = pd.read_csv(out / "entropy.csv")
    assert {"size", "policy", "seed", "layer", "mean", "seqlen_k", "scale"} <= set(table.columns)
    assert set(table["size"]) == {"16x16", "32x32"} and set(table["policy"]) == {"off", "logn:strength=0.5"}


def test_profile_json_prints_only_the_summary(profiled):
    out, done = profiled
    printed, written = json.loads(done.stdout), json.loads((out / "summary.json").read_text())
    files = printed.pop("files")
    assert printed == written
    assert set(files) == {"entropy", "heads", "layers", "response", "regimes", "hold", "summary", "plan", *FIGURES}
    assert written["device"] in ("cpu", "cuda") and written["steps"] == 2 and written["prompts"] == ["a", "b"]
    assert set(written["versions"]) >= {"torch", "entropy_attn"}


def test_profile_tables(tiny_model, tmp_path, capsys):
    assert main(["profile", "--model", str(tiny_model), "--sizes", "16", "--steps", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "16x16" in out and "entropy_map.png" in out
    assert "Slope of each layer" not in out  # of a single size there is none
    listed = {line.strip().rstrip("/") for line in out[out.index("Written to") :].splitlines()[1:]}
    assert listed == {path.name for path in tmp_path.iterdir()}


def test_profile_says_what_a_scale_can_do_and_its_policy_is_taken_back(tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # narrower tables break the lines of their heads
    common = ["--model", str(tiny_model), "--device", "cpu", "--steps", "2"]
    given = [
        "profile",
        *common,
        "--prompt",
        "a",
        "--no-pictures",
        "--sizes",
        "32,48",
        "--scale",
        "off",
        "--regime-steps",
    ]
    assert main([*given, "1", "--out", str(tmp_path / "check")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Slope of each layer's entropy against ln N" in out
    assert "Which layers can a scale move? 48x48 px, default scale" in out and "√(2 ln T)" in out
    assert (
        "48x48: LogN can undo " in out and " layers are responsive; to first order, factors from 0.5 to 2 hold " in out
    )
    policy = str(tmp_path / "check" / "hold-entropy.json")
    image = ["generate", *common, "--prompt", "a", "--scale", policy, "--out", str(tmp_path / "one.png")]
    assert main([*image, "--size", "48"]) == 0
    assert main([*given, "0", "--scale", policy, "--out", str(tmp_path / "held")]) == 0
    assert "Which layers" not in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "held" / "entropy.csv").query("kind == 'self' and size == '48x48' and step == 0")
    scales = table.query("policy == @policy").set_index(["layer", "branch"])["scale"]
    factors = scales / table.query("policy == 'off'").set_index(["layer", "branch"])["scale"]
    wanted = json.loads((tmp_path / "check" / "hold-entropy.json").read_text())["factors"]
    assert len(factors) == 2 * len(wanted)
    for (layer, _), factor in factors.items():
        assert factor == pytest.approx(list(wanted[layer].values())[-1], rel=1e-4)
    assert main([*image, "--size", "24"]) == 2
    assert "for which there are factors" in capsys.readouterr().err


def test_profile_default_sizes_surround_the_training_size(tiny_pipe):
    from entropy_attn.profiling.call import _sizes

    assert _sizes(tiny_pipe, None) == [(16, 16), (24, 24), (32, 32), (48, 48), (64, 64)]


def test_generate(tiny_model, tmp_path, capsys):
    out = tmp_path / "new" / "a.png"
    arguments = ["generate", "--model", str(tiny_model), "--prompt", "a red circle", "--steps", "1"]
    assert main([*arguments, "--size", "16x24", "--seed", "4", "--json", "--out", str(out)]) == 0
    done = json.loads(capsys.readouterr().out)
    assert Image.open(out).size == (24, 16)
    assert (
        done["size"] == [16, 24]
        and done["seed"] == 4
        and done["out"] == str(out)
        and list(done["policies"]) == ["logn"]
    )


def test_generate_of_several_prompts(tiny_model, tmp_path, capsys):
    given = ["generate", "--model", str(tiny_model), "--steps", "1", "--size", "16", "--json", "--out"]
    assert main([*given, str(tmp_path / "both.png"), "--prompt", "a", "--prompt", "b", "--negative-prompt", "c"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["prompts"] == ["a", "b"] and done["negative_prompt"] == "c"
    assert done["files"] == [str(tmp_path / f"both-{number}.png") for number in (0, 1)]
    assert main([*given, str(tmp_path / "one.png"), "--prompt", "b", "--negative-prompt", "c"]) == 0
    both, one = np.asarray(Image.open(tmp_path / "both-1.png"), int), np.asarray(Image.open(tmp_path / "one.png"), int)
    np.testing.assert_allclose(both, one, atol=1)


def test_generate_guided(tmp_path, capsys):
    given = ["generate", "--prompt", "a red circle and a blue square", "--steps", "2", "--scale", "off"]
    pictures = []
    for number, more in enumerate(([], ["--guidance", "tsam:alpha=0"], ["--guidance", "tsam"])):
        out = tmp_path / f"{number}.png"
        assert main([*given, *more, "--json", "--out", str(out)]) == 0
        assert json.loads(capsys.readouterr().out)["guidance"] == (more or [None])[-1]
        pictures.append(Image.open(out).tobytes())
    assert pictures[0] == pictures[1] != pictures[2]
    out = tmp_path / "compare.png"
    assert main([*given, "--guidance", "tsam", "--compare", "--out", str(out)]) == 0 and out.exists()


def test_generate_shows_maps(tmp_path, capsys):
    given = ["generate", "--prompt", "a red circle", "--steps", "2", "--guidance", "tsam:alpha=30", "--json"]
    assert main([*given, "--out", str(tmp_path / "plain.png")]) == 0
    plain = json.loads(capsys.readouterr().out)
    out, sheet = tmp_path / "picture.png", tmp_path / "new" / "sheet.png"
    assert main([*given, "--compare", "--show-maps", str(sheet), "--out", str(out)]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["show_maps"] == str(sheet) and plain["show_maps"] is None
    assert list(done["policies"]) == ["off", "unguided", "logn + tsam:alpha=30"]
    unguided, guided = done["losses"]["unguided"], done["losses"]["logn + tsam:alpha=30"]
    assert [step for step, _ in unguided] == [step for step, _ in guided] == [0, 1]
    assert unguided[0] == guided[0] and unguided[1] != guided[1] and guided == plain["losses"]["logn + tsam:alpha=30"]
    assert Image.open(sheet).width > 1000 and Image.open(out).width > 640


def test_a_warning_is_one_line(tmp_path, capsys):
    given = ["generate", "--prompt", "circle", "--steps", "1", "--guidance", "tsam"]
    assert main([*given, "--out", str(tmp_path / "a.png")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("entropy-attn: warning: guidance=TSAM: the prompt 'circle' has too few words")


def test_generate_compare(tiny_model, tmp_path, capsys):
    out = tmp_path / "b.png"
    arguments = [
        "generate",
        "--model",
        str(tiny_model),
        "--prompt",
        "a",
        "--steps",
        "1",
        "--compare",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    assert str(out) in capsys.readouterr().out
    picture = Image.open(out)
    assert picture.width > 640 and picture.height > 320


MAPS = ["maps", "--model", "MODEL", "--prompt", "a cat", "--steps", "2"]


def test_maps(tiny_model, tmp_path, capsys):
    out, table = tmp_path / "new" / "maps.png", tmp_path / "more" / "maps.csv"
    arguments = [str(tiny_model) if argument == "MODEL" else argument for argument in MAPS]
    options = ["--size", "16x24", "--map-size", "8x12", "--words", "cat,1", "--at-steps", "0,1", "--json"]
    assert main([*arguments, *options, "--out", str(out), "--csv", str(table)]) == 0
    done = json.loads(capsys.readouterr().out)
    assert Image.open(out).format == "PNG"
    assert done["map_size"] == [8, 12] and done["size"] == [16, 24] and done["at_steps"] == [0, 1]
    words = done["tokens"]
    assert [(word["token"], word["positions"]) for word in words] == [("cat", [2, 3, 4]), ("a", [1])]
    rows = pd.read_csv(table)
    assert len(rows) == 3 * 2 * 8 * 12 and set(rows["step"]) == {"mean", "0", "1"}
    peak = rows[(rows["step"] == "mean") & (rows["token"] == "cat")].sort_values("attention").iloc[-1]
    assert [peak["row"], peak["column"]] == words[0]["max_at"] and peak["attention"] == pytest.approx(words[0]["max"])
    steps = rows.pivot_table(index=["token", "row", "column"], columns="step", values="attention")
    assert steps["mean"].to_numpy() == pytest.approx(((steps["0"] + steps["1"]) / 2).to_numpy())


def test_maps_of_every_word_by_default(tiny_model, tmp_path, capsys):
    out = tmp_path / "maps.png"
    arguments = [str(tiny_model) if argument == "MODEL" else argument for argument in MAPS]
    assert main([*arguments, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert str(out) in said and Image.open(out).width > 800
    assert "positions, rows and columns count from 0" in " ".join(said.split())
    lines = [line.split() for line in said.splitlines()]
    assert ["word", "positions", "mean", "highest", "at", "row", "column"] in lines
    assert [line[:2] for line in lines if line and line[0] == "a"] == [["a", "1"], ["a", "3"]]  # c, a, t are tokens
    assert main([*arguments, "--colours", "all", "--out", str(tmp_path / "all.png")]) == 0
    assert Image.open(tmp_path / "all.png").tobytes() != Image.open(out).tobytes()


def test_maps_with_a_negative_prompt(tmp_path, capsys):
    given = [
        "maps",
        "--prompt",
        "a red circle",
        "--size",
        "64x64",
        "--steps",
        "2",
        "--json",
        "--out",
        str(tmp_path / "a.png"),
    ]
    found = {}
    for negative in ("a red circle", "a blue square", None):
        assert main([*given, *(() if negative is None else ("--negative-prompt", negative))]) == 0
        done = json.loads(capsys.readouterr().out)
        assert done["negative_prompt"] == negative
        found[negative] = [word["max"] for word in done["tokens"]]
    assert len({tuple(values) for values in found.values()}) == 3
    assert main([*given, "--negative-prompt", "b", "--guidance-scale", "1"]) == 2
    assert "guidance_scale: expected more than 1 with negative_prompt" in capsys.readouterr().err


def test_info(capsys):
    assert main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"] and report["devices"][0]["device"] == "cpu"
    rows = {(row["impl"], row["dtype"], row["head_dim"]): row for row in report["impls"] if row["device"] == "cpu"}
    assert rows["sdpa", "float32", 40]["serves"] and rows["reference", "bfloat16", 256]["serves"]
    assert all(bool(row["reasons"]) != row["serves"] for row in rows.values())
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "transformers" in out and "256" in out


def test_profile_of_a_transformer(tmp_path, capsys):
    """Joint attention, and a pipeline without a UNet."""
    from tests.recorders.test_joint_maps import sd3

    pipe = sd3()
    pipe.vae.register_to_config(shift_factor=0.0)
    pipe.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    command = ["profile", "--model", str(tmp_path / "model"), "--sizes", "24x16", "--scale", "off", "--scale", "logn"]
    assert main([*command, "--prompt", "ab c", "--steps", "2", "--device", "cpu", "--json", "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["files"]
    rows = pd.read_csv(out / "entropy.csv")
    assert set(rows["kind"]) >= {"joint"} and set(rows["policy"]) == {"off", "logn"} and set(rows["step"]) == {0, 1}
    assert {f"{name}.png" for name in FIGURES - {"entropy_vs_training"}} <= {path.name for path in out.iterdir()}
    assert main(["generate", "--model", str(tmp_path / "model"), "--prompt", "ab", "--size", "24x16", "--steps", "1",
                 "--device", "cpu", "--out", str(tmp_path / "one.png")]) == 0  # fmt: skip
    assert Image.open(tmp_path / "one.png").size == (16, 24)


def test_info_of_a_model(capsys, tmp_path, tiny_model):
    table = tmp_path / "layers.csv"
    command = ["info", "--model", str(tiny_model), "--size", "48x32", "--device", "cpu"]
    assert main([*command, "--json", "--csv", str(table)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["pipeline"], report["served"], report["size"]) == ("StableDiffusionPipeline", True, [48, 32])
    rows = report["layers"]
    first = next(row for row in rows if row["layer"] == "down_blocks.0.attentions.0.transformer_blocks.0.attn1")
    assert (first["kind"], first["seqlen_k"], first["train_tokens"], first["impl"]) == ("self", 24 * 16, 256, "sdpa")
    assert first["scale"] == pytest.approx((math.log(384) / math.log(256) / first["head_dim"]) ** 0.5)
    assert {row["scale"] for row in rows if row["kind"] == "cross"} == {None}
    assert len(pd.read_csv(table)) == len(rows)
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "StableDiffusionPipeline at 48x32" in " ".join(shown.split()) and "384" in shown
    assert main(["info", "--model", "shapes"]) == 0
    assert "at 64x64" in capsys.readouterr().out


def test_info_of_a_model_that_cannot_be_routed(capsys, tmp_path):
    from diffusers import DanceDiffusionPipeline, DDPMScheduler, UNet1DModel

    folder = tmp_path / "other"
    DanceDiffusionPipeline(unet=UNet1DModel(sample_size=64), scheduler=DDPMScheduler()).save_pretrained(folder)
    assert main(["info", "--model", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert not report["served"] and "UNet1DModel" in report["reasons"][0]
    assert main(["info", "--model", str(folder)]) == 0
    assert "is not routed" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["profile", "generate", "maps", "info"])
def test_help_has_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"entropy-attn {command}" in out and "Example" in out
