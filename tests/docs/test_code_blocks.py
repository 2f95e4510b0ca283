"""Code in the Markdown files of the repository: Python runs, and programs take their command lines."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from tests.support.documented import NEEDED, Parsed, entropy_attn_command, run_blocks
from tests.support.markdown import ROOT, blocks, commands, documents, inline_code
from tests.support.saved_models import tiny_model

__all__ = ["tiny_model"]

DOCUMENTS = documents()
WITH_PYTHON = [document for document in DOCUMENTS if blocks(document, "python")]
WITH_COMMANDS = [document for document in DOCUMENTS if any(commands(document))]
# Other tests run these: test_guidance_pages.py, test_coming_from.py, tests/notebooks, tests/hub; of key groups, of
# GuidanceBlock and of transformers.register; and test_upstream.py, in processes of its own, because the faults that it
# shows change the process
ELSEWHERE = {"docs/guidance.md", "docs/coming-from.md", "notebooks/README.md", "docs/hub-kernels.md", "docs/scale.md"}
ELSEWHERE |= {"docs/backends.md", "docs/methods.md"} | {
    document for document in WITH_PYTHON if document.startswith("docs/upstream/")
}
# What the reader has, by the text of a page
GIVEN = {
    "docs/coming-from.md": "pipe = None",
    "docs/methods.md": "pipe = sd3 = None",
    "docs/scale.md": "pipe = None",
    "notebooks/README.md": "entropy = words = image = None",
}
ON_AN_EMULATED_CARD = {"tests/emulation/README.md"}  # its calls take minutes; tests/emulation has the same lines
# Scripts for torchrun, with a GPU for each process; tests/spread and tests/runs make their calls in processes on a CPU
ON_SEVERAL_GPUS = {"docs/many-gpus.md", "docs/many-gpus-sweeps.md"}
NOT_RUN = ELSEWHERE | ON_AN_EMULATED_CARD | ON_SEVERAL_GPUS
# Programs of the system and of others, whose arguments are files
OTHERS = {"cd", "cp", "export", "git", "jupyter", "kernel-builder", "ln", "mkdir", "pytest", "rm"}


@pytest.mark.parametrize("document", sorted(set(WITH_PYTHON) - NOT_RUN))
def test_python_runs(document, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(document, tiny_model)


@pytest.mark.parametrize("document", WITH_PYTHON)
def test_no_name_is_undefined(document):
    """Also in blocks, and in parts of functions, that are not run."""
    code = "\n".join([GIVEN.get(document, ""), *(block.text for block in blocks(document, "python"))])
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F", "--output-format=json", "-"]
    done = subprocess.run(ruff, input=code, capture_output=True, text=True, check=False)
    found = [each["message"] for each in json.loads(done.stdout) if each["code"] not in ("F401", "F811")]
    assert not found


@pytest.mark.parametrize("document", WITH_COMMANDS)
def test_command_lines_are_taken_by_their_programs(document, monkeypatch):
    for place, words in commands(document):
        check = CHECKS.get(words[0])
        assert check or words[0] in OTHERS, f"{place}: a program that this test does not know: {words[0]}"
        if check:
            try:
                check(words[1:], monkeypatch)
            except (ValueError, SystemExit, LookupError) as error:
                pytest.fail(f"{place}: {' '.join(words)}: {error}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_within_a_line_are_right_as_far_as_they_go(document):
    for code in inline_code(document):
        if re.match(r"entropy-attn [a-z]", code) and not re.search(r"[…|]", code):
            entropy_attn_command(shlex.split(code)[1:], whole=False)


def test_these_checks_find_errors(monkeypatch):
    for words in ("profile --size 64", "generate", "evaluate scala", "maps --prompt a --steps many",
                  "generate --prompt a --scale login", "generate --prompt a --guidance tsam:beta=1"):  # fmt: skip
        with pytest.raises((ValueError, LookupError)):
            entropy_attn_command(words.split())
    entropy_attn_command(["generate"], whole=False)
    for words in ("-m benchmarks.report --chek", "-m benchmarks.nothing", "examples/nothing.py"):
        with pytest.raises((SystemExit, ValueError)):
            _python(words.split(), monkeypatch)
    for check, words in ((_make, "nothing"), (_pip, "install '.[nothing]'"), (_pip, "install '.[all,nothing]'")):
        with pytest.raises(ValueError):
            check(words.replace("'", "").split(), monkeypatch)


def _entropy_attn(words: list[str], _) -> None:
    entropy_attn_command(words)


def _python(words: list[str], monkeypatch) -> None:
    """`python -m module ...` and `python file.py ...`: the arguments are those that the program parses."""
    as_module = words[0] == "-m"
    name, *arguments = words[1:] if as_module else words
    if as_module and importlib.util.find_spec(name) is None:
        raise ValueError(f"there is no module {name}")
    if not as_module and not (ROOT / name).is_file():
        raise ValueError(f"there is no file {name}")
    path = ROOT / (f"{name.replace('.', '/')}.py" if as_module else name)
    if path.is_file() and "parse_args(" not in path.read_text(encoding="utf-8") and not arguments:
        return  # it takes none
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, given=None, namespace=None) -> None:
        parse(parser, given, namespace)
        raise Parsed

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patched.setattr(sys, "argv", [name, *arguments])
        patched.delitem(sys.modules, name, raising=False)  # otherwise runpy warns
        with pytest.raises(Parsed):
            if as_module:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / name), run_name="__main__")


def _torchrun(words: list[str], monkeypatch) -> None:
    from torch.distributed.run import get_args_parser

    _launched(get_args_parser().parse_args(words), monkeypatch)


def _accelerate(words: list[str], monkeypatch) -> None:
    launch = pytest.importorskip("accelerate.commands.launch")
    if words[0] != "launch":
        raise ValueError(f"expected accelerate launch, got {words[0]}")
    _launched(launch.launch_command_parser().parse_args(words[1:]), monkeypatch)


def _launched(given: argparse.Namespace, monkeypatch) -> None:
    """The options of the launcher are its own; the rest is the program that it starts."""
    if given.module and given.training_script == "entropy_attn":
        entropy_attn_command(given.training_script_args)
    else:
        _python([*(["-m"] if given.module else []), given.training_script, *given.training_script_args], monkeypatch)


def _make(words: list[str], _) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    wrong = [word for word in words if "=" not in word and word not in targets]
    if wrong:
        raise ValueError(f"the Makefile has no {wrong}")


def _pip(words: list[str], _) -> None:
    settings = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(settings["project"]["optional-dependencies"])
    for names in (found for word in words for found in re.findall(r"\[([\w,-]+)\]", word)):
        if not set(names.split(",")) <= extras:
            raise ValueError(f"expected extras of pyproject.toml, got {names}")


CHECKS = {"entropy-attn": _entropy_attn, "python": _python, "torchrun": _torchrun, "accelerate": _accelerate,
          "make": _make, "pip": _pip}  # fmt: skip


def test_packages_that_only_a_page_needs_are_not_installed():
    """Blocks that need one of them are not run; so the list must not grow old."""
    assert not [name for name in NEEDED if importlib.util.find_spec(name)]
    text = "".join(block.text for document in WITH_PYTHON for block in blocks(document, "python"))
    assert all(name in text for name in NEEDED)
    assert Path(ROOT / "README.md").is_file() and set(WITH_PYTHON) >= NOT_RUN
