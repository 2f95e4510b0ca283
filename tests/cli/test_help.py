"""Help without truncated text, version, completion, interruption, and messages about missing packages."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import typing

import pytest

pytest.importorskip("typer")

import entropy_attn as ea
from entropy_attn.cli import main

COMMANDS = (
    "profile",
    "generate",
    "maps",
    "explore",
    "bench",
    "info",
    "evaluate scale",
    "evaluate cost",
    "evaluate guidance",
)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "entropy_attn", *arguments],
        capture_output=True, text=True, check=False, env=environment or None,
    )  # fmt: skip


def help_of(command, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*command, "--help"]) == 0
    return capsys.readouterr().out


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_holds_every_word_and_keeps_the_width(command, width, monkeypatch, capsys):
    from entropy_attn.cli.app import app
    from entropy_attn.cli.evaluate import evaluate

    shown = help_of(command.split(), width, monkeypatch, capsys)
    lines = shown.splitlines()
    assert all(len(line) <= width for line in lines if "--prompt" not in line), shown
    assert "…" not in shown and "..." not in re.sub(r"(\[OPTIONS\]|\{?RUN\}?)\.\.\.", "", shown)
    commands = [*app.registered_commands, *evaluate.registered_commands]
    given = next(each for each in commands if each.callback.__name__ == command.split()[-1])
    for kind in typing.get_type_hints(given.callback, include_extras=True).values():
        for option in getattr(kind, "__metadata__", ()):
            assert option.hidden != (words(option.help) in words(shown))


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("command", [(), ("evaluate",), *(tuple(name.split()) for name in COMMANDS)])
def test_examples_are_valid_shell_commands(command, width, monkeypatch, capsys):
    """Folded or not, an example has the same words for a shell, and its options are those of the command."""
    shown = help_of(command, width, monkeypatch, capsys)
    part = shown.partition("Examples:")[2].partition("Options:")[0]
    found = [shlex.split(example) for example in re.sub(r"\\\n", "", part).strip().split("\n\n")]
    monkeypatch.setenv("COLUMNS", "1000")
    assert main([*command, "--help"]) == 0
    whole = capsys.readouterr().out.partition("Examples:")[2].partition("Options:")[0].strip()
    assert found == [shlex.split(line.replace("\\\n", "")) for line in whole.split("\n\n")] and found
    for example in found:
        assert example[0] == "entropy-attn" and example[1] in (*command, *COMMANDS, "COMMAND")
        assert tuple(example[1 : 1 + len(command)]) == command
        options = {word for word in example if word.startswith("--")}
        assert command in ((), ("evaluate",)) or all(
            f"{option} " in shown or f"{option}\n" in shown for option in options
        )


def test_every_command_is_listed(monkeypatch, capsys):
    shown = words(help_of([], 60, monkeypatch, capsys))
    assert (
        all(f" {command.split()[0]} " in shown for command in COMMANDS) and "which head dim and dtype, and why" in shown
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"entropy-attn {ea.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "index", "completed"), [("entropy-attn pro", 1, "profile"), ("entropy-attn maps --map", 2, "--map-size")]
)
def test_completion(typed, index, completed):
    import os

    given = {"_ENTROPY_ATTN_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(index)}
    assert run(**{**os.environ, **given}).stdout.split() == [completed]


def test_completion_is_offered(monkeypatch, capsys):
    assert "--install-completion" in help_of([], 80, monkeypatch, capsys)


def test_an_interruption_is_reported(monkeypatch, capsys):
    from entropy_attn.cli import versions

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(versions, "versions", interrupted)
    assert main(["info"]) == 130
    captured = capsys.readouterr()
    assert captured.err == "entropy-attn: interrupted\n" and captured.out == ""


def test_a_missing_package_is_named():
    code = "import sys; sys.modules['rich'] = None\nfrom entropy_attn.cli import main\nsys.exit(main(['info']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "rich" in done.stderr and "pip install" in done.stderr


def test_a_missing_module_of_this_package_is_a_bug(monkeypatch):
    from entropy_attn.cli import info as _  # noqa: F401

    monkeypatch.setitem(sys.modules, "entropy_attn.cli.app", None)
    with pytest.raises(ModuleNotFoundError):
        main(["info"])


@pytest.mark.parametrize("seed", ["-1", str(2**64), "99999999999999999999999"])
@pytest.mark.parametrize("command", [["maps", "--prompt", "a", "--seed"], ["generate", "--prompt", "a", "--seed"]])
def test_a_seed_out_of_range_is_refused(command, seed, capsys):
    assert main([*command, seed]) == 2
    assert (
        f"{command[-1]}: expected a whole number from 0 to 18446744073709551615, got {seed}" in capsys.readouterr().err
    )


def test_one_of_several_seeds_out_of_range_is_refused(capsys):
    assert main(["profile", "--seeds", f"0,{2**64}"]) == 2
    assert f"--seeds: expected a whole number from 0 to 18446744073709551615, got {2**64}" in capsys.readouterr().err


def test_the_largest_seed_is_accepted():
    import torch

    from entropy_attn.cli.parsing import MAX_SEED, check_seed
    from entropy_attn.profiling import plan

    torch.Generator().manual_seed(check_seed("--seed", MAX_SEED))
    assert plan.MAX_SEED == MAX_SEED


def test_help_does_not_wait_for_torch():
    code = "import sys; from entropy_attn.cli import app; print([n for n in ('torch', 'pandas') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", "a command imports what it needs when it runs"


@pytest.mark.parametrize("prompt", ["!!! , .", "...", "—", "« »", "^", "$ + ="])
def test_a_prompt_without_a_word_is_refused(prompt, capsys):
    assert main(["maps", "--prompt", prompt]) == 2
    assert "--prompt: expected at least one word" in (error := capsys.readouterr().err) and "--words" in error
