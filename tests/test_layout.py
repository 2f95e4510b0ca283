"""The architecture: which module may import which, and which packages stay optional."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate import architecture
from docs.generate.architecture import FLOORS, OPTIONAL

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "entropy_attn"

# Imported on first use: `ea.guidance.attach` is a second name of `ea.attach`, which needs diffusers, and a recorder's
# `plot()` draws with what is above it.
UPWARD = {
    ("guidance/__init__.py", "entropy_attn.integrations.guidance"),
    ("recorders/shown.py", "entropy_attn.plots.recorders"),
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
FILES += sorted((PACKAGE / "kernels").glob("*/*.py"))  # rglob does not follow symbolic links
KERNEL_FILES = sorted((ROOT / "kernels").glob("*/*.py"))


def _is_for_types(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(path: Path) -> set[str]:
    """Absolute dotted names of everything a file imports, at any depth of nesting."""
    package = ["entropy_attn", *path.relative_to(PACKAGE).parts[:-1]]
    names = set()
    tree = ast.parse(path.read_text())
    if path.name == "__init__.py":  # lazily exported names are imported there for type checkers only
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and _is_for_types(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            names |= {".".join([*module, alias.name]) for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    floor = {part: i for i, parts in enumerate(FLOORS) for part in parts}
    assert part_of(path) in floor, f"{part_of(path)} has no floor: give it one in docs/generate/architecture.py"
    for name in imported(path):
        parts = name.split(".")
        allowed = any(name.startswith(above) for file, above in UPWARD if file == str(path.relative_to(PACKAGE)))
        if parts[0] == "entropy_attn" and len(parts) > 1 and parts[1] in floor and not allowed:
            assert floor[parts[1]] <= floor[part_of(path)], f"{path} imports {name}, which lies above it"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "kernels").glob("*/*.py")), ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_the_kernels_can_be_loaded_without_the_package(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] != "entropy_attn", f"{path}:{node.lineno}: import it by a relative name"
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 2, f"{path}:{node.lineno} imports from above kernels/"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_packages_stay_where_they_belong(path):
    for name in imported(path):
        allowed = OPTIONAL.get(name.split(".")[0])
        assert allowed is None or part_of(path) in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "guidance").glob("*.py")), ids=lambda p: p.name)
def test_guidance_needs_only_torch(path):
    outside = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "entropy_attn", "spacy"}  # spacy only in one function, which documents it


def test_every_part_and_folder_is_described():
    parts = {part_of(path) for path in FILES}
    assert parts == {part for floor in FLOORS for part in floor}
    nested = {path.parent.relative_to(PACKAGE).as_posix() for path in FILES} - parts - {"."}
    assert nested == set(architecture.FOLDERS)


def test_the_page_of_the_architecture_is_up_to_date():
    text = architecture.PAGE.read_text(encoding="utf-8")
    remedy = "run: python -m docs.generate.architecture"
    assert architecture.page(text) == text, remedy
    assert architecture.IMAGE.read_text(encoding="utf-8") == architecture.image(), remedy


DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
DOCUMENTS += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_that_documents_name_exist(document):
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL)
    path = r"(?:[\w.-]+/)+[\w.-]*\.(?:py|md|csv|svg|png|toml)"
    for name in re.findall(rf"(?<=`)({path})(?=`)", text):
        assert any((folder / name).exists() for folder in (ROOT, PACKAGE, ROOT / "docs")), name


def test_kernels_is_a_link_and_no_package():
    # With an __init__.py, transformers' probe for Hugging Face's package `kernels` would import this folder.
    if (ROOT / "PKG-INFO").exists():  # a source distribution has a copy instead
        for path in (ROOT / "kernels").rglob("*.py"):
            assert (PACKAGE / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    else:
        assert (PACKAGE / "kernels").is_symlink() and (PACKAGE / "kernels").resolve() == ROOT / "kernels"
    assert not list((ROOT / "kernels").rglob("__init__.py"))


def test_every_folder_of_the_package_is_installed():
    listed = (ROOT / "pyproject.toml").read_text()
    for folder in {path.parent.relative_to(PACKAGE) for path in FILES} - {Path(".")}:
        assert f'"entropy_attn.{".".join(folder.parts)}"' in listed


def test_importing_the_package_needs_no_optional_one():
    code = f"import entropy_attn, sys; print(sorted({set(OPTIONAL)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/performance.md", ".ci/run"])
def test_make_targets_in_documents_exist(document):
    """Also within a line of text; tests/docs/test_code_blocks.py checks the blocks of all documents."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / document).read_text()
    lines = re.findall(r"(?:^|`)make ([a-z -]+)", text, re.MULTILINE)
    named = {word for line in lines for word in line.split()}
    assert named and named <= targets, named - targets


def test_paths_in_the_makefile_exist():
    for path in re.findall(r"(?<=[ =])tests[/\w.]*", (ROOT / "Makefile").read_text()):
        assert (ROOT / path).exists() or path.startswith("tests."), path


def test_mypy_excludes_only_the_kernels():
    """Only files with functions in Triton's language are excluded."""
    settings = (ROOT / "pyproject.toml").read_text().partition("# Triton's language")[2].partition("ignore_errors")[0]
    patterns = [name.removeprefix("entropy_attn.kernels.") for name in re.findall(r'"(entropy_attn[^"]*)"', settings)]
    modules = {path: ".".join(path.relative_to(ROOT / "kernels").with_suffix("").parts) for path in KERNEL_FILES}
    for path, module in modules.items():
        excluded = any(fnmatch.fnmatch(module, pattern) for pattern in patterns)
        assert excluded == any(jit in path.read_text() for jit in ("@triton.jit", "@gluon.jit")), (
            f"{module}: see [[tool.mypy.overrides]]"
        )


def test_the_hooks_are_the_checks_of_make_lint():
    lint = re.search(r"^lint:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    checks = [re.sub(r"^\$\(BIN\)/| \.$", "", check) for check in lint.split(" && ")]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"entry: \.venv/bin/(.*)", hooks)
    assert [entry.replace(" --force-exclude", "") for entry in entries] == checks
    assert hooks.count("language: system") == len(entries) == hooks.count("- id:")  # no network
