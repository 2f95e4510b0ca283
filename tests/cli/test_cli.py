"""The command line: files, JSON, help, and refusals in one line with exit code 2."""

from __future__ import annotations

import dataclasses
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

from entropy_attn.cli import main, parsing
from entropy_attn.cli.parsing import parse_scale
from entropy_attn.guidance import TSAM
from entropy_attn.scale import POLICIES, Constant, Fixed, Layers, LogN, Steps, YaRN
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
    tables = {"entropy.csv", "heads.csv", "layers.csv", "summary.json", "plan.json", "pictures", "maps"}
    assert {path.name for path in out.iterdir()} == {*tables, *(f"{name}.png" for name in FIGURES)}
    table = pd.read_csv(out / "entropy.csv")
    assert {"size", "policy", "seed", "layer", "mean", "seqlen_k", "scale"} <= set(table.columns)
    assert set(table["size"]) == {"16x16", "32x32"} and set(table["policy"]) == {"off", "logn:strength=0.5"}


def test_profile_json_is_the_summary_and_nothing_else(profiled):
    out, done = profiled
    printed, written = json.loads(done.stdout), json.loads((out / "summary.json").read_text())
    files = printed.pop("files")
    assert printed == written
    assert set(files) == {"entropy", "heads", "layers", "summary", "plan", *FIGURES}
    assert written["device"] in ("cpu", "cuda") and written["steps"] == 2 and written["prompts"] == ["a", "b"]
    assert set(written["versions"]) >= {"torch", "entropy_attn"}


def test_profile_tables(tiny_model, tmp_path, capsys):
    assert main(["profile", "--model", str(tiny_model), "--sizes", "16", "--steps", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "16x16" in out and "Slope of each layer" in out and "entropy_map.png" in out


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


def test_the_settings_of_a_guidance():
    found = parsing.parse_guidance(
        "tsam:alpha=10:steps=0..12:refine_at=0+10:map_size=8x4:step_range=1..0.5:variant=paper"
    )
    expected = {"alpha": 10, "steps": range(12), "refine_at": (0, 10), "map_size": (8, 4), "step_range": (1, 0.5)}
    assert found == TSAM(**expected, variant="paper")
    assert parsing.parse_guidance("off") is parsing.parse_guidance(None) is None


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
    assert "changes nothing at guidance_scale=1" in capsys.readouterr().err


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


def test_info_of_a_model_that_is_not_routed(capsys, tmp_path):
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


PROFILE, GENERATE = ["profile", "--model", "MODEL"], ["generate", "--model", "MODEL", "--prompt", "a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PROFILE, "--sizes", "32,30"], "size 30x30: both sides must be multiples of 8 px, for example 32x32"),
        (
            [*PROFILE, "--sizes", "32x"],
            "such as 64 or 48x96, got '32x'",
        ),
        ([*PROFILE, "--sizes", ","], "--sizes: expected at least one value, got ','"),
        ([*PROFILE, "--sizes", "32,32x32"], "--sizes: expected different sizes, got the same size twice"),
        ([*PROFILE, "--scales", "off,cosine"], "unknown scale 'cosine': give one of off, logn, lognoroot"),
        ([*PROFILE, "--scale", "off", "--scale", "power"], "scale 'power': give p=..."),
        ([*PROFILE, "--scale", "logn:strength=1:strength=2"], "strength is given twice"),
        ([*PROFILE, "--scale", "yarn:clamp=2..1"], "scale 'yarn:clamp=2..1': clamp=(2, 1): low must not exceed high"),
        ([*PROFILE, "--scale", "constant:factor=-1"], "factor=-1: more than 0 is needed; allow_nonpositive=True takes"),
        ([*PROFILE, "--scale", "constant:factor=1..0"], "factor=0: more than 0 is needed"),
        ([*PROFILE, "--scale", "logn:clamp=..-1"], "clamp=(None, -1): high must be more than 0"),
        ([*PROFILE, "--scale", "off:steps=3"], "steps=3 is not START..STOP"),
        ([*PROFILE, "--scale", "off:steps=3..1"], "stop=1: at least 4"),
        ([*PROFILE, "--scale", "off:layers=("], "'(' is not a regular expression"),
        ([*PROFILE, "--scale", "adaptive:profile=none.csv"], "profile='none.csv' cannot be read"),
        ([*PROFILE, "--scales", "off,off"], "--scale: expected different values, got 'off' twice"),
        ([*PROFILE, "--scales", "logn:warmth=2"], "'warmth=2' is not option=value with one of train_tokens, strength"),
        ([*PROFILE, "--scales", "logn:direction=sideways"], "sideways"),
        ([*PROFILE, "--seeds", "0,x"], "--seeds: expected whole numbers from 0, such as 0,1,2, got '0,x'"),
        ([*PROFILE, "--steps", "0"], "--steps: expected at least 1, got 0"),
        ([*PROFILE, "--steps", "many"], "--steps"),
        ([*PROFILE, "--guidance-scale", "-1"], "--guidance-scale: expected at least 0, got -1.0"),
        ([*PROFILE, "--guidance-scale", "nan"], "--guidance-scale: expected at least 0, got nan"),
        ([*PROFILE, "--prompt", " "], "--prompt: expected the text of an image, got ' '"),
        ([*PROFILE, "--device", "tpu"], "--device: expected auto, cpu, cuda or cuda:INDEX, got 'tpu'"),
        ([*PROFILE, "--device", "cuda:99"], "CUDA devices of this machine, got 'cuda:99'"),
        ([*PROFILE, "--dtype", "int8"], "--dtype: expected one of auto, float32, float16, bfloat16, got 'int8'"),
        ([*PROFILE, "--out", "FILE/below"], "--out: expected a folder that can be written to, got 'FILE/below'"),
        ([*PROFILE, "--sizes", "1048576"], "size 1048576x1048576 needs at least"),
        ([*PROFILE, "--resume"], "has no plan.json"),
        ([*PROFILE, "--argument", "x"], "--argument: expected NAME=VALUE, such as num_frames=9, got 'x'"),
        ([*PROFILE, "--argument", "num_frames=9"], "takes no 'num_frames'"),
        ([*PROFILE, "--offload", "disk"], "--offload: expected one of model, sequential, got 'disk'"),
        (
            [*PROFILE, "--offload", "model", "--device", "cpu"],
            "expected a CUDA device to move weights off, got cpu",
        ),
        ([*PROFILE, "--scheduler", "Nothing"], "scheduler 'Nothing' is no scheduler of diffusers: give one of"),
        ([*PROFILE, "--scheduler", "FlowMatchEulerDiscreteScheduler"], "is made for other models"),
        (
            [*PROFILE, "--lora", "a.safetensors:much"],
            "such as PATH:0.8, got 'a.safetensors:much'",
        ),
        ([*PROFILE, "--variant", "fp8"], "no files of variant 'fp8'"),
        ([*PROFILE, "--revision", "main"], "only a Hub id has revisions"),
        ([*PROFILE, "--config", "x"], "has its own; a single .safetensors file needs one"),
        (["profile", "--variant", "fp16"], "the embedded model has but one"),
        (
            [*GENERATE, "--prompt", "b", "--show-maps", "maps.png", "--guidance", "tsam"],
            "expected one --prompt, got 2",
        ),
        ([*GENERATE, "--negative-prompt", "b", "--guidance-scale", "1"], "changes nothing at guidance_scale=1"),
        (["profile", "--model", "./nowhere"], "unknown model './nowhere'"),
        (["profile", "--model", "nobody/nothing"], "unknown model 'nobody/nothing'"),
        (["generate"], "--prompt"),
        ([*GENERATE, "--size", "33"], "size 33x33"),
        (
            [*GENERATE, "--size", "big"],
            "such as 64 or 48x96, got 'big'",
        ),
        ([*GENERATE, "--scale", "other"], "unknown scale 'other'"),
        ([*GENERATE, "--scale", "off", "--compare"], "--compare: expected a --scale other than 'off'"),
        ([*GENERATE, "--guidance", "tsan"], "unknown guidance 'tsan'"),
        ([*GENERATE, "--guidance", "tsam:alpha=-1"], "alpha=-1"),
        ([*GENERATE, "--guidance", "tsam:beta=1"], "option=value"),
        ([*GENERATE, "--guidance", "tsam:target=1"], "option=value"),
        (
            [*GENERATE, "--guidance", "tsam:steps=9"],
            "steps: expected START..STOP, such as 0..12",
        ),
        (
            [*GENERATE, "--guidance", "tsam:refine_at=0,10"],
            "refine_at: expected steps joined by +",
        ),
        (
            [*GENERATE, "--guidance", "tsam:steps=8..9", "--steps", "6"],
            "--guidance: expected steps below --steps 6",
        ),
        ([*GENERATE, "--guidance", "tsam:map_size=big"], "map_size: expected one number"),
        ([*GENERATE, "--show-maps", "maps.png"], "--show-maps: expected --guidance tsam with it, got --guidance off"),
        ([*GENERATE, "--show-maps", "maps.png", "--guidance", "off"], "--show-maps: expected --guidance tsam with it"),
        (
            [*GENERATE, "--show-maps", "picture.png", "--guidance", "tsam"],
            "a file other than --out",
        ),
        (
            [*GENERATE, "--show-maps", "maps.txt", "--guidance", "tsam"],
            "--show-maps: expected the name of",
        ),
        (
            [*GENERATE, "--show-maps", "maps.png", "--guidance", "tsam"],
            "a prompt of two words or more, got 'a'",
        ),
        ([*GENERATE, "--seed", "-1"], "--seed: expected a whole number from 0 to 18446744073709551615, got -1"),
        ([*GENERATE, "--out", "picture.docx"], "--out: expected the name of an image file"),
        ([*GENERATE, "--out", "FILE/below/a.png"], "--out: expected a folder that can be written to, got 'FILE/below'"),
        ([*GENERATE, "--out", "FOLDER.png"], "--out: expected a file name, got the folder 'FOLDER.png'"),
        (["maps"], "--prompt"),
        ([*MAPS, "--words", "dog"], "'dog' is not in the prompt 'a cat', whose words are 'a', 'cat'"),
        ([*MAPS, "--words", "99"], "position 99 is not in the text"),
        ([*MAPS, "--words", ","], "--words: expected at least one value"),
        ([*MAPS, "--words", "a", "--tokens", "a"], "--words: expected either it or its older name --tokens, got both"),
        ([*MAPS, "--colours", "each"], "--colours: expected one of word, all, got 'each'"),
        ([*MAPS, "--map-size", "big"], "--map-size: expected one number for a square"),
        ([*MAPS, "--map-size", "5"], "size=(5, 5): no layer of that size was called"),
        ([*MAPS, "--at-steps", "2"], "--at-steps: expected steps from 0 to 1, such as 0,1, got '2'"),
        ([*MAPS, "--at-steps", "-1"], "--at-steps: expected steps from 0 to 1"),
        ([*MAPS, "--csv", "maps.txt"], "--csv: expected a name that ends in .csv, got 'maps.txt'"),
        ([*MAPS, "--csv", "FILE/below/maps.csv"], "--csv: expected a folder that can be written to, got 'FILE/below'"),
        ([*MAPS, "--out", "maps.txt"], "--out: expected the name of an image file"),
        (["render"], "render"),
        (["info", "--jsn"], "--jsn"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, message, tiny_model, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    (tmp_path / "FOLDER.png").mkdir()
    assert main([str(tiny_model) if argument == "MODEL" else argument for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("entropy-attn: error: ") and message in line


def test_a_refusal_through_the_interpreter_has_no_traceback():
    done = _run(["generate", "--prompt", "a", "--scale", "other"])
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "unknown scale" in done.stderr


def test_a_missing_dependency_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "entropy_attn.cli.app", raising=False)
    assert main(["info"]) == 2
    assert "typer" in (error := capsys.readouterr().err) and "entropy-attn[cli]" in error


def _written(value):
    """A setting as it is written on the command line."""
    return "..".join(map(str, value)) if isinstance(value, tuple) else str(value)


# A value other than the default for every setting of every policy, by its name.
SETTINGS = {
    "value": 0.2,
    "factor": 1.5,
    "p": 0.25,
    "train_tokens": 64,
    "strength": 0.5,
    "direction": "down",
    "clamp": (0.9, 1.2),
    "count_text_tokens": True,
    "lambda_min": 1.1,
    "lambda_max": 1.5,
    "gamma": 1.5,
    "h_min": 0.25,
    "h_max": 6.0,
    "missing": "leave",
    "size": "32x32",
    "policy": "off",
    "step": 0,
    "branch": "uncond",
    "relative": True,
    "allow_nonpositive": True,
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_takes_every_setting(name, tmp_path, invented):
    table = tmp_path / "entropy.csv"
    invented.entropy.to_csv(table, index=False)
    chosen = {"profile": str(table), "size": "32x32", "policy": "off"}  # of a profile of several
    fields = dataclasses.fields(POLICIES[name])
    values = {**SETTINGS, **chosen}
    needed = {f.name: values[f.name] for f in fields if f.default is dataclasses.MISSING or f.name in chosen}
    for field in fields:
        settings = {**needed, field.name: values[field.name]}
        policy = parse_scale(":".join([name, *(f"{key}={_written(each)}" for key, each in settings.items())]))
        assert policy == POLICIES[name](**settings)
        assert field.name in needed or policy != POLICIES[name](**needed), f"{field.name} makes no difference"
    assert name in parsing.SCALE_HELP


def test_scale_options_become_the_policy():
    assert parse_scale("off") == Fixed()
    assert parse_scale("off:value=0") == Fixed(value=0)
    assert parse_scale("logn:strength=0.5:direction=up") == LogN(strength=0.5, direction="up")
    assert parse_scale("logn:clamp=0.9..1.2:count_text_tokens=true") == LogN(clamp=(0.9, 1.2), count_text_tokens=True)
    assert parse_scale("logn:clamp=..1.2") == LogN(clamp=(None, 1.2))
    assert parse_scale("constant:factor=1.1..1.2") == Constant((1.1, 1.2))
    turned = parse_scale("constant:factor=-1:allow_nonpositive=true")
    assert turned == Constant(-1, allow_nonpositive=True)
    assert parse_scale("yarn:steps=2..5") == Steps(YaRN(), 2, 5)
    assert parse_scale("yarn:steps=..5") == Steps(YaRN(), 0, 5)
    assert parse_scale("yarn:steps=5..") == Steps(YaRN(), 5)
    assert parse_scale("yarn:layers=^mid|up_blocks.1:steps=0..5:strength=2") == Layers(
        {"^mid|up_blocks.1": Steps(YaRN(strength=2), 0, 5)}
    )
    with pytest.raises(ValueError, match=r"profile='\.\./none\.csv' cannot be read"):
        parse_scale("adaptive:profile=../none.csv")
