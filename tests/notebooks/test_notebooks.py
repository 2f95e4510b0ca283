"""Every notebook runs in a fresh kernel, and shows what its committed outputs show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("ipykernel")
pytest.importorskip("nbclient")
pytest.importorskip("altair", reason="needs the extra [explore]")
pytest.importorskip("vl_convert", reason="needs the extra [explore]")

import nbformat
from nbclient.exceptions import CellExecutionError

from docs.generate import notebooks
from tests.notebooks.compare import differences, same_text

FILES = {path.stem: path for path in sorted(notebooks.FOLDER.glob("*.ipynb"))}
MAX_BYTES = 1_500_000
MIN_CELLS, MAX_CELLS = 8, 18


def read(path):
    return nbformat.read(path, as_version=4)


# The others take a minute each, and `make slow` runs all of them
@pytest.mark.parametrize("name", ["words"])
def test_it_runs(name):
    assert notebooks.executed(read(FILES[name])).cells


@pytest.mark.slow  # and other processors may round otherwise
@pytest.mark.parametrize("name", FILES)
def test_it_shows_what_is_committed(name):
    committed = read(FILES[name])
    found = differences(committed, notebooks.executed(committed))
    assert not found, "\n".join([*found, "if this is meant, run: make notebooks"])


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_small_executed_and_without_traces_of_a_machine(name):
    notebook = read(FILES[name])
    assert FILES[name].stat().st_size <= MAX_BYTES and MIN_CELLS <= len(notebook.cells) <= MAX_CELLS
    nbformat.validate(notebook)
    assert notebooks.clean(notebook) == notebook, "run: make notebooks"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert all(cell.source.strip() for cell in notebook.cells)
    text = re.sub(r"[A-Za-z0-9+/=]{200,}", "", json.dumps(notebook))  # images
    for trace in ("/home/", "/root", "/tmp", "/work", "site-packages", str(Path.home()), str(notebooks.ROOT)):
        assert trace not in text, trace


def test_every_notebook_is_listed():
    assert set(FILES) == {"guidance", "profile", "words"}
    listed = re.findall(r"\]\((\w+)\.ipynb\)", (notebooks.FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_one_variable_takes_another_model(name):
    first = next(cell.source for cell in read(FILES[name]).cells if cell.cell_type == "code")
    assert len(re.findall(r"^MODEL = None  # ", first, re.MULTILINE)) == 1
    assert len(re.findall(r"^[A-Z_]+ = ", first, re.MULTILINE)) == 1


def test_a_cell_that_raises_is_an_error():
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('planted')")])
    with pytest.raises(CellExecutionError, match="planted"):
        notebooks.executed(broken)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("H 1.234 nats", "H 1.235 nats", True),
        ("H 1.234 nats", "H 1.335 nats", False),
        ("H 1.234 nats", "L 1.234 nats", False),
        ("0.001", "0.002", True),
        ("0.0010", "0.0030", False),
        ("12%", "13%", True),
        ("12%", "14%", False),
        ("12%", "12", False),
        ("256 keys", "257 keys", False),
        ("2e-05", "2e-04", False),
        ("1.0", "1.0 2.0", False),
        ("-1.0", "1.0", False),
        ("a   1.25\nb 3", "a  1.25\nb   3", True),
    ],
)
def test_text_is_compared_up_to_rounding(one, other, same):
    assert same_text(one, other) is same


def shown(notebook, kind):
    """The data of every output that has this kind."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data for output in outputs if kind in output.get("data", {})]


def test_changed_outputs_are_found():
    committed = read(FILES["words"])
    assert not differences(committed, committed)
    fresh = nbformat.from_dict(committed)
    table = shown(fresh, "text/html")[0]
    table["text/html"] = table["text/html"].replace("<th", "<td", 1)
    first, second, *_ = shown(fresh, "image/png")
    first["image/png"] = second["image/png"]
    found = differences(committed, fresh)
    assert len(found) == 2 and "text/html" in found[0] and "another image" in found[1]
    fresh = nbformat.from_dict(committed)
    next(cell for cell in fresh.cells if cell.get("outputs")).outputs.clear()
    assert differences(committed, fresh)
