"""`entropy-attn explore`: what it writes and says, and what it refuses before any work."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("typer")

from entropy_attn.cli import main
from entropy_attn.recorders.map_files import save_maps


def test_a_page_of_a_profile_and_maps(folder, tmp_path, capsys):
    pytest.importorskip("altair", reason="needs the extra [explore]")
    pytest.importorskip("vl_convert", reason="needs the extra [explore]")
    maps = save_maps(tmp_path / "maps.csv", {None: np.full((1, 1, 2, 3, 5), 0.1)}, ("all",), (("red", "fox"),))
    out = tmp_path / "new" / "page.html"
    assert main(["explore", str(folder), str(maps), "--out", str(out), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done == {"runs": [str(folder), str(maps)], "out": str(out), "bytes": out.stat().st_size}
    text = out.read_text(encoding="utf-8")
    assert re.findall(r"<h1>(.*?)</h1>", text) == [
        "Attention entropy of SomePipeline",
        "Attention to each word, maps.csv",
    ]


def test_profile_and_maps_write_their_page(tmp_path, capsys):
    pytest.importorskip("altair", reason="needs the extra [explore]")
    pytest.importorskip("vl_convert", reason="needs the extra [explore]")
    pytest.importorskip("diffusers")
    prompt = ["--prompt", "a red circle", "--steps", "2", "--json"]
    given = ["profile", *prompt, "--sizes", "32", "--scale", "off,logn", "--no-pictures", "--explore"]
    assert main([*given, "--out", str(tmp_path)]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["files"]["explore"] == str(tmp_path / "explore.html")
    text = (tmp_path / "explore.html").read_text(encoding="utf-8")
    assert "<h1>Attention entropy of shapes</h1>" in text and "32x32 px; trained at 64x64" in text
    spec = json.loads(re.search(r'id="specs">(.*?)</script>', text, re.DOTALL)[1])["chart0"]
    (row, *_) = spec["datasets"]["steps"]
    table = pd.read_csv(tmp_path / "entropy.csv")
    rows = table[(table["policy"] == "off") & (table["branch"] == "cond") & (table["kind"] == "self")]
    first = rows[rows["layer"] == rows["layer"].iloc[0]].sort_values("step")
    assert row["step"] == [0, 1] and row["head"] == -1
    np.testing.assert_allclose(row["entropy"], first["mean"], rtol=1e-3)
    np.testing.assert_allclose(row["high"], first["head_max"], rtol=1e-3)
    assert {each["step"] for each in spec["datasets"]["maps"]} == {0, 1}

    page, csv = tmp_path / "words.html", tmp_path / "maps.csv"
    given = ["maps", *prompt, "--size", "32", "--explore", str(page), "--csv", str(csv)]
    assert main([*given, "--out", str(tmp_path / "maps.png")]) == 0
    assert json.loads(capsys.readouterr().out)["explore"] == str(page)
    spec = json.loads(re.search(r'id="specs">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)[1])["chart0"]
    values = pd.read_csv(csv).groupby("token", sort=False)["attention"].apply(list)
    assert [each["word"] for each in spec["datasets"]["words"]] == ["a", "red", "circle"] == list(values.index)
    for each in spec["datasets"]["words"]:
        np.testing.assert_allclose(each["values"], values[each["word"]], rtol=1e-3)
    assert spec["datasets"]["image"][0]["url"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], "RUN: expected a folder written by `entropy-attn profile`, got 'none'"),
        (["none.csv"], "RUN: expected a file of maps, got 'none.csv'"),
        (["{folder}", "--out", "page.txt"], "--out: expected a name that ends in .html, got 'page.txt'"),
        ([], "Missing argument 'RUN'"),
    ],
)
def test_refusals(arguments, said, folder, capsys):
    pytest.importorskip("altair", reason="needs the extra [explore]")
    pytest.importorskip("vl_convert", reason="needs the extra [explore]")
    assert main(["explore", *(each.format(folder=folder) for each in arguments)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("module", "package"), [("altair", "altair"), ("vl_convert", "vl-convert-python")])
@pytest.mark.parametrize(
    "arguments",
    [
        ["explore", "none"],
        ["profile", "--explore", "--out", "{tmp}/profile"],
        ["maps", "--prompt", "a fox", "--explore", "{tmp}/page.html", "--out", "{tmp}/maps.png"],
    ],
)
def test_a_missing_package_is_named_before_any_work(monkeypatch, capsys, tmp_path, arguments, module, package):
    if module != "altair":
        pytest.importorskip("altair", reason="needs the extra [explore]")
    monkeypatch.setitem(sys.modules, module, None)
    assert main([each.format(tmp=tmp_path) for each in arguments]) == 2
    said = f"entropy-attn: error: the explorer needs {package}: pip install 'entropy-attn[explore]'\n"
    assert capsys.readouterr().err == said
