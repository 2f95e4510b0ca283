"""Every command takes an embedded model by its name: here the second one, with random weights."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("typer")
pytest.importorskip("diffusers")

from entropy_attn import shapes
from entropy_attn.cli import main

MODEL = ["--model", "shapes:transformer"]
PROMPT = ["--prompt", "a red circle and a blue square"]


@pytest.fixture(autouse=True)
def both(shapes_transformer, monkeypatch):
    monkeypatch.setitem(shapes.MODELS, "transformer", shapes_transformer)


def printed(arguments, capsys):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_generate(tmp_path, capsys):
    out = tmp_path / "a.png"
    given = ["generate", *MODEL, *PROMPT, "--steps", "1", "--scale", "lognoroot", "--out", str(out)]
    done = printed([*given, "--size", "96x64", "--compare"], capsys)
    assert done["model"] == "shapes:transformer" and done["guidance_scale"] == 4.0 and done["size"] == [96, 64]
    assert Image.open(out).width > 2 * 64
    assert main([*given, "--size", "72"]) == 2
    assert "size 72x72: both sides must be multiples of 16 px, for example 64x64" in capsys.readouterr().err


def test_policies_beside_each_other_come_from_the_same_noise(tmp_path, capsys):
    given = ["generate", *MODEL, *PROMPT, "--steps", "2", "--size", "96"]
    both, one = tmp_path / "both.png", tmp_path / "one.png"
    done = printed([*given, "--scale", "logn,lognoroot", "--compare", "--out", str(both)], capsys)
    assert list(done["policies"]) == ["off", "logn", "lognoroot"] == list(done["seconds"])
    assert main([*given, "--scale", "lognoroot", "--out", str(one)]) == 0
    sheet, alone = np.asarray(Image.open(both).convert("RGB")), np.asarray(Image.open(one).convert("RGB"))
    assert sheet.shape[1] == 16 + 3 * (384 + 16)  # 96 px, enlarged four times
    top = sheet.shape[0] - 28 - 8 - 384
    last = sheet[top : top + 384 : 4, 16 + 2 * 400 : 16 + 2 * 400 + 384 : 4]
    assert np.array_equal(last, alone)


def test_maps(tmp_path, capsys):
    csv = tmp_path / "maps.csv"
    given = ["maps", *MODEL, *PROMPT, "--steps", "2", "--out", str(tmp_path / "maps.png"), "--csv", str(csv)]
    done = printed([*given, "--size", "64x96"], capsys)
    words = ["a", "red", "circle", "and", "a", "blue", "square"]
    assert [word["token"] for word in done["tokens"]] == words
    assert [word["positions"] for word in done["tokens"]] == [[n] for n in range(1, 8)]
    assert done["map_size"] == [8, 12] and done["layers"] == ["layers.0.attn"] and len(pd.read_csv(csv)) == 7 * 96


def test_profile(tmp_path, capsys):
    done = printed(["profile", *MODEL, "--sizes", "64,96", "--steps", "1", "--out", str(tmp_path)], capsys)
    assert done["training_size"] == "64x64" and done["prompts"][0] == "a red circle and a blue square"
    assert done["guidance_scale"] == 4.0 and done["notes"] == []
    assert (tmp_path / "runs" / "96x96-off-seed0" / "maps.npz").is_file()


def test_info(capsys):
    done = printed(["info", *MODEL, "--size", "128"], capsys)
    joint = next(row for row in done["layers"] if row["kind"] == "joint")
    assert done["pipeline"] == "Lumina2Pipeline" and (joint["train_tokens"], joint["text"]) == (64, "first")


def test_guidance_by_text_maps_is_for_unets(tmp_path, capsys):
    given = ["generate", *MODEL, *PROMPT, "--steps", "1", "--guidance", "tsam", "--out", str(tmp_path / "a.png")]
    assert main(given) == 2
    assert "Lumina2Pipeline" in capsys.readouterr().err
