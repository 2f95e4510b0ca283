"""Every benchmark script: its help works and has an example, and it is in the table of benchmarks/README.md."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
HELPERS = {"benchmarks.gpu.calls", "benchmarks.gpu.device", "benchmarks.gpu.figures", "benchmarks.gpu.warm",
           "benchmarks.gpu.worker", "benchmarks.shapes.transformer.evaluate",
           "benchmarks.shapes.transformer.export"}  # fmt: skip


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")


SCRIPTS = [
    module_of(path) for path in FILES if path.name == "__main__.py" or "\nif __name__ ==" in path.read_text()
]  # fmt: skip


@pytest.mark.parametrize("module", SCRIPTS)
def test_help_has_an_example_that_names_the_module(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)  # otherwise runpy warns
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"python -m {module}" in shown and "show this help" in shown


def test_every_script_answers_a_question_in_the_table():
    table = (ROOT / "benchmarks" / "README.md").read_text()
    for module in set(SCRIPTS) - HELPERS:
        parent, _, name = module.rpartition(".")
        assert f"`{module}`" in table or (f"`{parent}." in table and f"`.{name}`" in table), module


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_are_absolute(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{path}:{node.lineno}"
