"""The page of a profile: its rows are the numbers of the profile, and it asks for nothing from outside."""

from __future__ import annotations

import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("altair", reason="needs the extra [explore]")
pytest.importorskip("vl_convert", reason="needs the extra [explore]")

from entropy_attn.explore import profile_rows, read_profile, write_page
from entropy_attn.explore.page import POLICY
from entropy_attn.explore.spatial_views import spatial_rows
from tests.explore.conftest import save_profile
from tests.explore.test_size import LIBRARY

LINES = {"off": (0.6, 0.4), "logn": (0.5, 0.8)}  # slope and intercept in ln N, of the invented profile


@pytest.fixture
def profile(folder):
    return read_profile(folder)


def test_the_heat_map_is_h_over_ln_n(profile):
    rows = profile_rows.head_rows(profile)
    assert len(rows) == 2 * 5 * 5 * 4
    for row in rows:
        slope, intercept = LINES[row["policy"]]
        expected = slope * np.log(row["tokens"]) + intercept + 0.1 * (row["head"] - 1.5)
        assert row["entropy"] == pytest.approx(expected, rel=1e-3)
        assert row["relative"] == pytest.approx(expected / np.log(row["tokens"]), rel=1e-3)
    assert len({row["layer"] for row in rows}) == 5 and all("." in row["layer"] for row in rows)


@pytest.mark.parametrize("heads", [True, False])
def test_the_steps_of_a_layer_and_of_a_head(invented, tmp_path, heads):
    rows = profile_rows.step_rows(read_profile(save_profile(invented, tmp_path / "profile", heads)))
    layers = [row for row in rows if row["head"] == profile_rows.ALL_HEADS]
    assert len(layers) == 2 * 5 * 5 and len(rows) == len(layers) * (5 if heads else 1)
    tokens = {(row["size"], row["layer"]): row["tokens"] for row in profile_rows.head_rows(
        read_profile(tmp_path / "profile"))}  # fmt: skip
    for row in rows:
        slope, intercept = LINES[row["policy"]]
        middle = slope * np.log(tokens[row["size"], row["layer"]]) + intercept + 0.05 * (np.arange(4) - 1.5)
        assert row["step"] == [0, 1, 2, 3]
        if row["head"] == profile_rows.ALL_HEADS:
            np.testing.assert_allclose(row["entropy"], middle, rtol=1e-3)
            np.testing.assert_allclose(row["low"], middle - 0.15, rtol=1e-3)
            np.testing.assert_allclose(row["high"], middle + 0.15, rtol=1e-3)
        else:
            np.testing.assert_allclose(row["entropy"], middle + 0.1 * (row["head"] - 1.5), rtol=1e-3)


def test_the_slopes_are_those_of_the_lines(profile):
    rows = profile_rows.slope_rows(profile)
    assert len(rows) == 2 * 5
    for row in rows:
        assert row["slope"] == pytest.approx(LINES[row["policy"]][0], abs=1e-3)
    tokens = profile_rows.token_rows(profile)
    assert len(tokens) == 2 * 5 * 5 and all(row["ln_tokens"] == pytest.approx(np.log(row["tokens"]), rel=1e-3)
                                            for row in tokens)  # fmt: skip


def test_the_table_has_n_t_and_the_factor(profile):
    head, *rows = profile_rows.layer_table(profile)
    assert head == ["layer", "size, px", "N", "T", "factor of logn"] and len(rows) == 5 * 5
    by_key = {(row[0], row[1]): row[2:] for row in rows}
    assert by_key["down0.0.0", "128x128"] == ["1024", "256", "1"]  # the invented profile has one scale


def test_a_factor_that_is_not_known_says_so(folder):
    for name in ("plan.json", "summary.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"off": "None"', '"off": "Fixed(value=0.3)"'))
    (folder / "regimes.csv").unlink()
    head, *rows = profile_rows.layer_table(read_profile(folder))
    assert head[4:] == ["factor of off", "factor of logn"]
    assert all(row[4:] == ["not known"] * 2 for row in rows)
    assert rows[0][3] == "256"  # T from the run at the training size


def test_the_maps_are_those_of_the_profile(profile, invented):
    found = spatial_rows(profile)
    assert found.steps == [0, 1, 2, 3] and len(found.rows) == 2 * 5 * 4
    from entropy_attn.explore.grids import ALPHABET, LEVELS

    names = {name: layer for layer, name in profile_rows.layer_names(profile).items()}
    for row in found.rows:
        values = invented.maps[row["policy"]][names[row["layer"]]]
        expected = values * (1 - 0.1 * row["step"]) / np.log(values.size)
        levels = np.array([ALPHABET.index(letter) for letter in row["codes"]]) / (LEVELS - 1)
        shown = row["low"] + levels * (row["high"] - row["low"])
        half = (row["high"] - row["low"]) / (LEVELS - 1) / 2
        np.testing.assert_allclose(shown.reshape(-1, row["columns"]), expected, atol=half * 1.001 + 1e-3)


def without_library(text: str) -> str:
    """The page without the largest script, which is the bundled library."""
    largest = max(re.findall(r"<script>.*?</script>", text, re.DOTALL), key=len)
    assert len(largest) > 500_000
    return text.replace(largest, "")


def test_the_page_is_small_whole_and_valid(folder, tmp_path):
    import altair

    out = write_page(tmp_path / "page.html", [read_profile(folder)])
    text = out.read_text(encoding="utf-8")
    library = len(text.encode()) - len(without_library(text).encode())
    assert library < LIBRARY and len(text.encode()) < 1_300_000
    assert POLICY in text and "default-src 'none'" in POLICY
    own = without_library(text)
    assert not re.findall(r"\b(?:src|href|action)\s*=|@import|url\(|\bfetch\(|<link|<iframe", own)
    assert set(re.findall(r"https?://[^\s\"'<]+", own)) <= {altair.SCHEMA_URL}  # names the version, is not loaded
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', own, re.DOTALL)[1])
    (spec,) = specs.values()
    altair.Chart.from_dict(spec, validate=True)
    assert {"heads", "steps", "tokens", "slopes", "maps"} == set(spec["datasets"])


def test_a_notebook_shows_the_page_as_it_opens(folder):
    read = read_profile(folder)
    with Image.open(io.BytesIO(read._repr_png_())) as image:
        assert image.format == "PNG" and min(image.size) > 400
        assert len(image.convert("RGB").resize((200, 200)).getcolors(maxcolors=40_000)) > 20
    assert re.fullmatch(r"<ProfileFolder: \d+ sizes, scales off, logn, \d+ layers>", repr(read))


def test_a_prompt_cannot_leave_its_place(invented, tmp_path):
    import dataclasses

    bad = "</script><script>alert(1)</script>"
    invented.plan = dataclasses.replace(invented.plan, prompts=[bad, "<b>"], policies={bad: None, "logn": None})
    for name in ("entropy", "heads", "response", "runs"):
        table = getattr(invented, name)
        table["policy"] = table["policy"].replace("off", bad)
    invented.maps = {bad: invented.maps["off"], "logn": invented.maps["logn"]}
    text = write_page(tmp_path / "p.html", [read_profile(save_profile(invented, tmp_path / "profile"))]).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "RUN: expected a folder written by `entropy-attn profile`, got"),
        (lambda folder: (folder / "heads.csv").unlink(), "RUN: expected heads.csv in the profile, but"),
        (lambda folder: (folder / "summary.json").write_text("{"), "RUN: expected a readable summary.json, got"),
        (lambda folder: (folder / "plan.json").write_text("[]"), "RUN: expected the plan of a profile in plan.json"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(folder, spoil, said):
    spoil(folder)
    with pytest.raises(ValueError, match=re.escape(said)):
        read_profile(folder)


def test_an_unfinished_profile_is_refused(folder):
    shutil.rmtree(next((folder / "runs").iterdir()))
    with pytest.raises(ValueError, match="RUN: expected a finished profile, got 9 of 10 runs"):
        read_profile(folder)
