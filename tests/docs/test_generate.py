"""The commands of docs/generate: each has a help with an example, and asking for it writes nothing."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytest.importorskip("nbclient")

ROOT = Path(__file__).parents[2]
COMMANDS = [
    path.stem for path in sorted((ROOT / "docs" / "generate").glob("*.py")) if "\nif __name__ ==" in path.read_text()
]


def run(monkeypatch, module: str, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.delitem(sys.modules, module, raising=False)  # otherwise runpy warns
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: pytest.fail("it wrote a file"))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_names_the_module(name, monkeypatch, capsys):
    module = f"docs.generate.{name}"
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, module, "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"    python -m {module}" in shown and "show this help" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_word_is_refused(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, f"docs.generate.{name}", "nothing")
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err


def test_an_unknown_notebook_is_named(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "docs.generate.notebooks", "wods", "words")
    names = ", ".join(sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
    assert f"NAME: expected {names}, got wods" in capsys.readouterr().err
