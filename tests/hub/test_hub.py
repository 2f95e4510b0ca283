"""The package as a kernel of Hugging Face's Hub: what is exported, and that `kernels` loads it without the package."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("tomllib")  # Python 3.11

from hub.export import export, main
from tests.support.oracle import assert_matches_oracle, make_qkv
from tests.support.oracle_gradients import assert_gradients_match, random_gradients

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("child.py")
REPO_ID = "owner/entropy-attn"
BACKENDS = ("cpu", "cuda", "rocm")
HERE = "cuda" if torch.version.cuda else "rocm" if torch.version.hip else "cpu"  # what `kernels` takes here
OPERATORS = ("attention", "attention_all", "attention_all_backward", "attention_backward")
PUBLIC = ["AttentionOutput", "Unsupported", "attention", "scaled_dot_product_attention", "unsupported_reasons"]
NEEDED = {"torch", "triton", *sys.stdlib_module_names}
STATISTICS = ("grad_out", "grad_lse", "grad_entropy", "grad_map")
OPTIONS = [
    {"map_keys": (5, 17)},
    {"map_keys": (0, 35), "is_causal": True},
    {"map_keys": (20, 35), "enable_gqa": True},
]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "kernel"
    export(folder, REPO_ID)
    return folder


def python_files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*.py"))


def calls(impl):
    """Odd shapes, one head dim in chunks, and scales that are a number, one per head, or absent; random gradients."""
    scales = (0.3, None, torch.tensor([0.2, 0.4]))
    made = []
    for options, scale in zip(OPTIONS, scales, strict=True):
        tensors = make_qkv(1, 2, 21, 35, 40, heads_kv=1 if options.get("enable_gqa") else 2, head_dim_v=24)
        grads = random_gradients(*tensors, options["map_keys"])
        given = {**options, "impl": impl} | ({"scale": scale} if isinstance(scale, float) else {})
        per_head = [scale] if isinstance(scale, torch.Tensor) else []
        made.append(([*tensors, *per_head], given, [grads[name] for name in STATISTICS]))
    return made


def check(made, answers):
    """Results and gradients against float64."""
    for (tensors, options, cotangents), (results, found) in zip(made, answers, strict=True):
        options = {name: value for name, value in options.items() if name != "impl"}
        scale = tensors[3] if len(tensors) > 3 else options.pop("scale", None)
        assert_matches_oracle(results, *tensors[:3], scale=scale, **options)
        grads = dict(zip(STATISTICS, cotangents, strict=True)) | {"map_keys": options.pop("map_keys")}
        options.pop("enable_gqa", None)
        assert_gradients_match(found, *tensors[:3], grads, scale=scale, **options)


def child(task, kernel, folder, *paths, interpret=True):
    """The answers of a process that can import torch, Triton, `kernels` and what these need, but not the package."""
    installed = {str(importlib.metadata.distribution(name).locate_file("")) for name in ("torch", "triton", "kernels")}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": str(int(interpret))}
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(CHILD), task, str(kernel), str(folder), *paths, *sorted(installed)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "answers.pt")


def test_it_has_what_kernel_builder_and_kernels_ask_for(kernel):
    build = {"CARD.md", *(f"torch-{backend}" for backend in BACKENDS)}
    assert {path.name for path in kernel.iterdir()} == {
        "CARD.md", "LICENSE", "benchmarks", "build", "build.toml", "flake.nix", "torch-ext",
    }  # fmt: skip
    assert {path.name for path in (kernel / "build").iterdir()} == build
    assert [path.name for path in (kernel / "torch-ext").iterdir()] == ["entropy_attn"]
    # kernel-builder writes this file, and refuses to replace one
    assert not (kernel / "torch-ext" / "entropy_attn" / "_ops.py").exists()
    assert not [path for path in kernel.rglob("*") if path.is_symlink() or path.suffix == ".pyc"]


def test_the_sources_are_those_of_the_package(kernel):
    sources = kernel / "torch-ext" / "entropy_attn"
    package = ROOT / "entropy_attn"
    names = python_files(sources)
    for name in names:
        origin = ROOT / "hub" / "torch-ext" / "entropy_attn" if name == Path("__init__.py") else package
        assert (sources / name).read_bytes() == (origin / name).read_bytes(), name
    kernels = [Path("kernels") / path for path in python_files(ROOT / "kernels")]
    operators = [Path("ops") / path for path in python_files(package / "ops")]
    assert set(names) == {Path("__init__.py"), Path("errors.py"), Path("validation.py"), *kernels, *operators}
    data = [path.relative_to(sources) for path in sources.rglob("*") if path.is_file() and path.suffix != ".py"]
    assert data == [Path("kernels/forward/measured.csv")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_build_differs_from_the_sources_in_the_names_of_its_operators(kernel, backend):
    build, sources = kernel / "build" / f"torch-{backend}", kernel / "torch-ext" / "entropy_attn"
    own = {path.relative_to(build): path.read_bytes() for path in build.rglob("*") if path.is_file()}
    same = {path.relative_to(sources): path.read_bytes() for path in sources.rglob("*") if path.is_file()}
    identifier = json.loads(own.pop(Path("metadata.json")))["id"]
    assert identifier.isidentifier() and identifier.startswith(f"_entropy_attn_{backend}_")
    names = {}
    exec(own.pop(Path("_ops.py")), names)
    assert names["add_op_namespace_prefix"]("attention") == f"{identifier}::attention"
    assert own == same


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_imports_torch_triton_and_itself_by_relative_names(kernel, backend):
    build = kernel / "build" / f"torch-{backend}"
    for name in python_files(build):
        for node in ast.walk(ast.parse((build / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= NEEDED, name
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.partition(".")[0] in NEEDED, f"{name}:{node.lineno} imports {node.module}"
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= len(name.parts), f"{name}:{node.lineno} imports from above the kernel"
                base = build.joinpath(*name.parts[: len(name.parts) - node.level], *(node.module or "").split("."))
                modules = [base] if base.with_suffix(".py").exists() else [base / alias.name for alias in node.names]
                assert all(module.with_suffix(".py").exists() for module in modules), f"{name}:{node.lineno}"


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Another version: one that differs in a comment."""
    errors, *others = sys.modules["hub.export"].PARTS
    (tmp_path / "errors.py").write_text(errors.read_text() + "# changed\n")
    monkeypatch.setattr("hub.export.PARTS", (tmp_path / "errors.py", *others))
    export(tmp_path / "other")
    return tmp_path / "other"


def test_the_same_contents_have_the_same_name_and_others_another(kernel, other, monkeypatch, tmp_path):
    monkeypatch.undo()
    export(tmp_path / "same")
    for backend in BACKENDS:
        named, same, another = (
            json.loads((folder / "build" / f"torch-{backend}" / "metadata.json").read_text())["id"]
            for folder in (kernel, tmp_path / "same", other)
        )
        assert named == same != another


def test_it_computes_without_the_package(kernel, tmp_path):
    made = [*calls("triton"), *calls("sdpa")]
    torch.save(made, tmp_path / "calls.pt")
    found = child("alone", kernel, tmp_path)
    check(made, found["answers"])
    assert found["public"] == PUBLIC
    assert found["from the repository"] == [str(CHILD)]
    assert found["id"].startswith(f"_entropy_attn_{HERE}_")
    assert found["operators"] == [f"{found['id']}::{name}" for name in OPERATORS]


def test_it_computes_beside_the_package(kernel, tmp_path):
    torch.save(calls("triton")[:1], tmp_path / "calls.pt")
    found = child("beside", kernel, tmp_path, str(ROOT))
    assert found["operators"] == [f"{space}::{name}" for space in (found["id"], "entropy_attn") for name in OPERATORS]
    check(calls("triton")[:1], found["answers"][1])
    for one, other in zip(found["answers"][:-1], found["answers"][1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.slow
def test_two_versions_compute_in_one_process(kernel, other, tmp_path):
    torch.save(calls("triton")[:1], tmp_path / "calls.pt")
    found = child("twice", kernel, tmp_path)
    assert len(set(found["ids"])) == 2
    check(calls("triton")[:1], found["answers"][0])
    torch.testing.assert_close(*found["answers"], rtol=0, atol=0)


@pytest.mark.slow
def test_a_compiled_graph_has_it_as_one_operator(kernel, tmp_path):
    torch.save(calls("triton"), tmp_path / "calls.pt")
    eager, graph = child("compiled", kernel, tmp_path)["answers"]
    torch.testing.assert_close(eager, graph)


def test_on_a_cpu_the_kernels_need_the_interpreter(kernel, tmp_path):
    torch.save(calls("triton"), tmp_path / "calls.pt")
    with pytest.raises(AssertionError, match=r"Unsupported: .*on the cpu, and TRITON_INTERPRET=1 is not set"):
        child("alone", kernel, tmp_path, interpret=False)


@pytest.mark.slow
def test_the_example_of_the_card_runs(kernel, tmp_path):
    assert child("card", kernel, tmp_path)["shapes"] == [(2, 8, 1024, 40), (2, 8, 1024), (2, 1024, 77)]


def test_the_card_is_complete(kernel):
    card = (kernel / "build" / "CARD.md").read_text(encoding="utf-8")
    assert "{" + "{" not in card and REPO_ID in card
    assert all(f"`{name}" in card for name in PUBLIC)


@pytest.mark.slow
def test_the_benchmark_compares_calls_of_real_models(kernel, tmp_path):
    from entropy_attn.bench.workloads import workloads

    models = {"StableDiffusion15": "sd15", "StableDiffusionXL": "sdxl", "StableDiffusion3": "sd3", "Flux": "flux"}
    found = child("benchmark", kernel, tmp_path)
    assert set(found) == set(models)
    for name, (shape, verified) in found.items():
        assert shape in {(w.batch, w.heads, w.seqlen, w.head_dim) for w in workloads(models[name])}
        assert verified == {"output": True, "entropy": True, "map": True}


def test_a_folder_that_is_not_empty_is_refused(kernel, tmp_path, capsys):
    before = sorted(kernel.rglob("*"))
    with pytest.raises(FileExistsError, match="out: expected a new or an empty folder, got"):
        export(kernel)
    assert sorted(kernel.rglob("*")) == before
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "file")])
    assert "out: expected a new or an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("repo_id", ["entropy-attn", "a/b/c", "owner/", "/name", 'o/n"\n', "owner name/x", ""])
def test_a_wrong_name_of_a_repository_is_refused(tmp_path, repo_id):
    with pytest.raises(ValueError, match="repo_id: expected None or OWNER/NAME, got"):
        export(tmp_path / "kernel", repo_id)
    assert not list(tmp_path.iterdir())


def test_without_a_repository_there_is_no_card_of_it(tmp_path):
    main([str(tmp_path / "kernel")])
    assert not (tmp_path / "kernel" / "build" / "CARD.md").exists()
    assert "repo-id" not in (tmp_path / "kernel" / "build.toml").read_text()


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("hub.export._write_builds", lambda kernel, repo_id: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(tmp_path / "kernel")
    assert not list(tmp_path.iterdir())
