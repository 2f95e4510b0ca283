"""What the command line refuses: one line on stderr that names the option, and exit code 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("typer")
pytest.importorskip("diffusers")

from entropy_attn.cli import main
from entropy_attn.shapes.names import embedded_names

EMBEDDED = ", ".join(map(repr, embedded_names()))
MAPS = ["maps", "--model", "MODEL", "--prompt", "a cat", "--steps", "2"]
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
        ([*PROFILE, "--scales", "off,cosine"], "scale: expected one of off, logn, lognoroot"),
        ([*PROFILE, "--scale", "off", "--scale", "power"], "scale 'power': expected p=..., got nothing"),
        ([*PROFILE, "--scale", "logn:strength=1:strength=2"], "expected each option once, got strength twice"),
        (
            [*PROFILE, "--scale", "yarn:clamp=2..1"],
            "scale 'yarn:clamp=2..1': clamp: expected a pair (low, high) with 0 <= low <= high",
        ),
        (
            [*PROFILE, "--scale", "constant:factor=-1"],
            "factor: expected a number > 0, got -1; allow_nonpositive=True accepts",
        ),
        ([*PROFILE, "--scale", "constant:factor=1..0"], "factor: expected a number > 0, got 0"),
        ([*PROFILE, "--scale", "logn:clamp=..-1"], "and high > 0, either of which may be None, got (None, -1)"),
        ([*PROFILE, "--scale", "off:steps=3"], "steps: expected START..STOP, such as 0..10, 5.. or ..5, got 3"),
        ([*PROFILE, "--scale", "off:steps=3..1"], "stop: expected None or an integer >= 4, got 1"),
        ([*PROFILE, "--scale", "off:layers=("], "valid regular expressions as keys, got '('"),
        ([*PROFILE, "--scale", "adaptive:profile=none.csv"], "profile: cannot read 'none.csv'"),
        ([*PROFILE, "--scales", "off,off"], "--scale: expected different values, got 'off' twice"),
        ([*PROFILE, "--scales", "logn:warmth=2"], "expected option=value with one of train_tokens, strength"),
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
        ([*PROFILE, "--argument", "x"], "--argument: expected NAME=VALUE, such as num_frames=9, got 'x'"),
        ([*PROFILE, "--argument", "num_frames=9"], "got 'num_frames'"),
        ([*PROFILE, "--offload", "disk"], "--offload: expected one of model, sequential, got 'disk'"),
        (
            [*PROFILE, "--offload", "model", "--device", "cpu"],
            "expected a CUDA device to move weights off, got cpu",
        ),
        ([*PROFILE, "--scheduler", "Nothing"], "got 'Nothing', which is no scheduler of diffusers"),
        ([*PROFILE, "--scheduler", "FlowMatchEulerDiscreteScheduler"], "which does not fit StableDiffusionPipeline"),
        (
            [*PROFILE, "--lora", "a.safetensors:much"],
            "such as PATH:0.8, got 'a.safetensors:much'",
        ),
        ([*PROFILE, "--variant", "fp8"], "got 'fp8'"),
        ([*PROFILE, "--revision", "main"], "is a local path and not a Hub id, got 'main'"),
        ([*PROFILE, "--config", "x"], "is not a single .safetensors file, got 'x'"),
        (["profile", "--variant", "fp16"], "variant: expected None for the embedded model, got 'fp16'"),
        (
            [*GENERATE, "--prompt", "b", "--show-maps", "maps.png", "--guidance", "tsam"],
            "expected one --prompt, got 2",
        ),
        (
            [*GENERATE, "--negative-prompt", "b", "--guidance-scale", "1"],
            "guidance_scale: expected more than 1 with negative_prompt='b', got 1",
        ),
        (
            ["profile", "--model", "./nowhere"],
            f"model: expected {EMBEDDED}, a diffusers folder, a Hub id or a .safetensors file, got './nowhere'",
        ),
        (
            ["profile", "--model", "nobody/nothing"],
            f"model: expected {EMBEDDED}, a folder or a Hub id, got 'nobody/nothing'",
        ),
        (
            ["maps", "--model", "shapes:other", "--prompt", "a"],
            f"model: expected one of {', '.join(embedded_names())}, got 'shapes:other'",
        ),
        (["info", "--model", "shapes:"], "model: expected one of shapes, shapes:unet"),
        (["generate"], "--prompt"),
        ([*GENERATE, "--size", "33"], "size 33x33"),
        (
            [*GENERATE, "--size", "big"],
            "such as 64 or 48x96, got 'big'",
        ),
        ([*GENERATE, "--scale", "other"], "scale: expected one of off, logn"),
        ([*GENERATE, "--scale", "off", "--compare"], "--compare: expected a --scale other than 'off'"),
        ([*GENERATE, "--scale", "logn,off", "--compare"], "--compare: expected a --scale other than 'off'"),
        (
            [*GENERATE, "--scale", "logn,lognoroot"],
            "--scale: expected one policy, or --compare with several, got 'logn,",
        ),
        ([*GENERATE, "--scale", "logn,logn", "--compare"], "--scale: expected different values, got 'logn' twice"),
        (
            [*GENERATE, "--scale", "logn,yarn", "--compare", "--show-maps", "maps.png", "--guidance", "tsam"],
            "--show-maps: expected one --scale, got 'logn,yarn'",
        ),
        ([*GENERATE, "--guidance", "tsan"], "guidance: expected one of tsam, got 'tsan'"),
        ([*GENERATE, "--guidance", "tsam:alpha=-1"], "alpha: expected a finite number >= 0, got -1"),
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
        ([*GENERATE, "--out", "image.docx"], "--out: expected the name of an image file"),
        ([*GENERATE, "--out", "FILE/below/a.png"], "--out: expected a folder that can be written to, got 'FILE/below'"),
        ([*GENERATE, "--out", "FOLDER.png"], "--out: expected a file name, got the folder 'FOLDER.png'"),
        (["maps"], "--prompt"),
        ([*MAPS, "--words", "dog"], "error: --words: 'dog' is not in the prompt 'a cat', whose words are 'a', 'cat'"),
        ([*MAPS, "--words", "99"], "error: --words: position 99 is not in the text"),
        ([*MAPS, "--tokens", "dog"], "error: --words: 'dog' is not in the prompt"),
        ([*MAPS, "--words", ","], "--words: expected at least one value"),
        ([*MAPS, "--words", "a", "--tokens", "a"], "--words: expected either it or its older name --tokens, got both"),
        ([*MAPS, "--colors", "each"], "--colors: expected one of word, all, got 'each'"),
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
    done = subprocess.run(
        [sys.executable, "-m", "entropy_attn", "generate", "--prompt", "a", "--scale", "other"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "scale: expected one of" in done.stderr


def test_a_missing_dependency_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "entropy_attn.cli.app", raising=False)
    assert main(["info"]) == 2
    assert "typer" in (error := capsys.readouterr().err) and "entropy-attn[cli]" in error
