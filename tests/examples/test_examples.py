"""Every file in examples/ runs, with few steps, and prints what its docstring says."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

FOLDER = Path(__file__).parents[2] / "examples"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
MAX_LINES = 60

# Quick settings, and what the output has to contain.
RUNS = {
    "attention_call": ("--tokens 96", r"(?s)ln 96 = 4\.56 nats.*1, 8, 96, 40.*1, 96, 77.*norm [1-9]"),
    "compiled_pipeline": ("--sizes 32 48 --steps 2", r"(?s)32 px: (\d) graphs.*48 px: \1 graphs"),
    "entropy_profile": ("--sizes 32 64 --steps 1 --out profile", r"(?s)off: 32x32 px \d.*slope against.*entropy\.csv"),
    "guided_generation": ("--steps 2", r"(?s)alpha 0: loss \d\.\d+.*alpha 10: loss \d\.\d+.*image is right"),
    "own_loss": (
        "--steps 1 --updates 2",
        r"(?s)-0.png: .*'triangle' in the left half (\d+%) -> \1.*-100.png: .* \d+% -> \d+%",
    ),
    "own_policy": ("--steps 2", r"(?s)step +0 +1\n.*down_blocks"),
    "scale_of_a_pipeline": ("--size 96 --steps 1", r"(?s)64 px, Fixed.*96 px, Fixed.*96 px, LogN"),
    "words_in_joint_attention": ("--steps 1", r"6 layers of 8x8 image tokens(?s:.*) to 'circle'"),
}
WRITTEN = {
    "entropy_profile": ("profile/entropy.csv", "profile/summary.json"),
    "guided_generation": ("guided.png",),
    "own_loss": ("moved-0.png", "moved-100.png"),
    "own_policy": ("policy.png",),
    "scale_of_a_pipeline": ("scale.png",),
    "words_in_joint_attention": ("words-1-red.png", "words-6-square.png"),
}


def loaded(name: str):
    """In this process: eight interpreters would import torch and diffusers eight times."""
    spec = spec_from_file_location(f"example_{name}", FILES[name])
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "compiled_pipeline" else name for name in RUNS]
)
def test_it_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options, pattern = RUNS[name]
    torch.compiler.reset()
    loaded(name).main(options.split())
    said = capsys.readouterr().out
    assert re.search(pattern, said), said
    assert all((tmp_path / file).stat().st_size for file in WRITTEN.get(name, ()))
    if not WRITTEN.get(name):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_help_shows_the_commands_of_the_docstring(name, capsys):
    module = loaded(name)
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    said = capsys.readouterr().out
    assert not ended.value.code and module.__doc__.strip() in said
    commands = re.findall(r"^    python examples/(\w+)\.py", module.__doc__, re.MULTILINE)
    assert commands and set(commands) == {name}
    for option in set(re.findall(r"(?<= )--[\w-]+", module.__doc__)):
        assert f"\n  {option} " in said, f"{option} is no option of {name}.py"


def test_every_example_is_run_short_and_listed():
    assert set(RUNS) == set(FILES) and len(FILES) == 8
    for path in FILES.values():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, path.name
    listed = re.findall(r"\]\((\w+)\.py\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(FILES)
