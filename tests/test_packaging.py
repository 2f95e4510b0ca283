"""The shipped package: metadata, extras, files, types, and a self-contained description."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import entropy_attn as ea

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, EXTRAS = SETTINGS["project"], SETTINGS["project"]["optional-dependencies"]


def names(requirements):
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}


def sources():
    """Every module of the package; rglob does not follow the link to kernels/."""
    package = ROOT / "entropy_attn"
    return {*package.rglob("*.py"), *(package / "kernels").glob("**/*.py")}


def test_metadata_is_complete():
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    assert PROJECT["authors"] and PROJECT["keywords"] and PROJECT["description"]
    pythons = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert "3.10" in pythons and PROJECT["requires-python"] == ">=3.10" and "Typing :: Typed" in PROJECT["classifiers"]
    assert "version" in PROJECT["dynamic"] and re.fullmatch(r"\d+\.\d+\.\d+", ea.__version__)


def test_all_is_for_users():
    (everything,) = EXTRAS["all"]
    others = {"all", "dev", "docs", "independent", "peers"}
    assert set(re.search(r"\[(.*)\]", everything)[1].split(",")) == set(EXTRAS) - others
    assert not {"pytest", "hypothesis", "ruff"} & {
        name for extra in EXTRAS if extra != "dev" for name in names(EXTRAS[extra])
    }


def test_extras_are_what_the_package_imports():
    """Packages that no module imports, and packages that another requirement installs, are not listed."""
    imported = {"accelerate"}  # by diffusers, for offloading and for loading without a second copy
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    known = {"pillow": "PIL"}
    needed = {name for extra in ("diffusers", "cli", "bench") for name in names(EXTRAS[extra])}
    assert {known.get(name, name) for name in needed | names(PROJECT["dependencies"])} <= imported


def test_every_pin_is_for_an_installed_package():
    pinned = names((ROOT / "constraints.txt").read_text().split())
    asked = {name for extra in EXTRAS if extra != "all" for name in names(EXTRAS[extra])} | names(
        PROJECT["dependencies"]
    )
    assert asked - pinned == set()


def test_every_module_and_file_of_the_package_is_shipped():
    package = ROOT / "entropy_attn"
    packages = set(SETTINGS["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in sources()} | {package / "kernels"}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == packages
    data = SETTINGS["tool"]["setuptools"]["package-data"]
    for path in [*package.rglob("*"), *(package / "kernels").glob("**/*")]:
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            patterns = [Path(*name.split("."), pattern) for name, listed in data.items() for pattern in listed]
            assert any(path.relative_to(ROOT).match(str(pattern)) for pattern in patterns), path


def test_the_description_is_self_contained():
    code = "import setuptools; setuptools.setup = lambda **given: print(given['long_description'])\n"
    code += "exec(open('setup.py').read(), {'__file__': 'setup.py'})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.findall(r"\]\(([^)]*)\)", done.stdout)
    assert targets and all(target.startswith("https://") for target in targets)
    assert "![" not in done.stdout and "docs/scale.md" in done.stdout and "## Install" in done.stdout


def test_a_source_distribution_has_the_files_that_its_tests_need():
    manifest = (ROOT / "MANIFEST.in").read_text()
    folders = ("tests", "benchmarks", "docs", "examples", "hub", "integrations", "kernels", "notebooks", ".ci")
    for folder in folders:
        assert f"graft {folder}\n" in manifest
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "README.md"):
        assert name in manifest.splitlines()[0].split()


def imports_for_types(path):
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for line in node.body:
                assert all(alias.name == alias.asname for alias in line.names), "`import name as name` exports it"
                found |= {alias.name for alias in line.names}
    return found


def test_type_checkers_see_every_public_name():
    assert (ROOT / "entropy_attn" / "py.typed").is_file()
    assert {*imports_for_types(ROOT / "entropy_attn" / "__init__.py"), "__version__"} == set(ea.__all__)
    assert set(ea.__all__) == {*ea._EXPORTS, "__version__"}
    assert "attach" in imports_for_types(ROOT / "entropy_attn" / "guidance" / "__init__.py")


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("apply", "diffusers", "diffusers"),
        ("attach", "diffusers", "diffusers"),
        ("guidance.attach", "diffusers", "diffusers"),
        ("TSAMStableDiffusionPipeline", "diffusers", "diffusers"),
        ("profile", "pandas", "cli"),
    ],
)
def test_a_name_that_needs_an_extra_says_which(name, missing, extra):
    code = f"import sys; sys.modules[{missing!r}] = None; import entropy_attn; entropy_attn.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    said = f"entropy_attn.{name}: expected {missing} to be installed: pip install 'entropy_attn[{extra}]'"
    assert done.stderr.strip().splitlines()[-1] == f"ModuleNotFoundError: {said}"


def test_a_checkout_without_symbolic_links_is_explained(tmp_path):
    package = tmp_path / "entropy_attn"
    package.mkdir()
    (package / "__init__.py").write_text((ROOT / "entropy_attn" / "__init__.py").read_text())
    (package / "kernels").write_text("../kernels")
    done = subprocess.run([sys.executable, "-c", "import entropy_attn"], cwd=tmp_path, capture_output=True, text=True)
    assert "ImportError: entropy_attn/kernels is a plain file" in done.stderr and "core.symlinks=true" in done.stderr
    for name in ("setup.py", "pyproject.toml", "README.md"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run([sys.executable, "setup.py", "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "core.symlinks=true" in done.stderr


def test_loading_the_embedded_model_prints_no_advice():
    import logging

    from entropy_attn.shapes import _without_advice

    said = []
    logger, handler = logging.getLogger("transformers.utils.import_utils"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with _without_advice():
            logger.error("`CLIPImageProcessor` requires torchvision (not installed)")
            logger.error("something else")
        logger.error("`SiglipImageProcessor` requires torchvision (not installed)")
    finally:
        logger.removeHandler(handler)
    assert said == ["something else", "`SiglipImageProcessor` requires torchvision (not installed)"]
