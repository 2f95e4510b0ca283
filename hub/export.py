"""Write the package's attention call and its kernels as a kernel of Hugging Face's Hub.

The folder has what kernel-builder builds and publishes (build.toml, flake.nix, CARD.md, benchmarks/, torch-ext/). Its
build/ has what kernel-builder would make of that, so that `kernels.get_local_kernel` loads the folder at once.

    python -m hub.export build/hub
    python -m hub.export build/hub --repo-id OWNER/entropy-attn   # names the repository in build.toml and in the card
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2  # torch brings it
import tomllib  # Python 3.11

HUB = Path(__file__).parent
ROOT = HUB.parent
PACKAGE = ROOT / "entropy_attn"
# What the call consists of. These import each other by relative names, and otherwise torch and Triton.
PARTS = (PACKAGE / "errors.py", PACKAGE / "validation.py", PACKAGE / "ops", ROOT / "kernels")
NAMESPACE = "entropy_attn::"  # of the operators, in _ops.py


def export(out: Path, repo_id: str | None = None) -> None:
    """Write the folder, or nothing.

    Args:
        out: a new or empty folder.
        repo_id: `OWNER/NAME`, where the kernel will be published; None writes no card for it.

    Raises:
        FileExistsError: `out` is a file, or a folder that is not empty.
        ValueError: `repo_id` is no name of a repository.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"out: expected a new or an empty folder, got {str(out)!r}")
    if repo_id is not None and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id, re.ASCII):
        raise ValueError(f"repo_id: expected None or OWNER/NAME, got {repo_id!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        kernel = Path(folder) / "kernel"
        _write_sources(kernel, repo_id)
        _write_builds(kernel, repo_id)
        if out.exists():
            out.rmdir()
        kernel.rename(out)


def _write_sources(kernel: Path, repo_id: str | None) -> None:
    """What kernel-builder starts from."""
    for name in ("flake.nix", "CARD.md", "benchmarks", "torch-ext"):
        _copy(HUB / name, kernel / name)
    _copy(ROOT / "LICENSE", kernel / "LICENSE")
    text = (HUB / "build.toml").read_text(encoding="utf-8")
    if repo_id is not None:
        text += f'\n[general.hub]\nrepo-id = "{repo_id}"\n'
    (kernel / "build.toml").write_text(text, encoding="utf-8")
    suffixes = {f".{extension}" for extension in tomllib.loads(text)["torch-noarch"]["pyext"]}
    for part in PARTS:
        _copy(part, kernel / "torch-ext" / "entropy_attn" / part.name, suffixes)


def _write_builds(kernel: Path, repo_id: str | None) -> None:
    """What kernel-builder makes of the sources: a folder for each backend, with its own names of the operators."""
    settings = tomllib.loads((kernel / "build.toml").read_text(encoding="utf-8"))
    sources = kernel / "torch-ext" / "entropy_attn"
    contents = hashlib.sha256(json.dumps(_digests(sources), sort_keys=True).encode()).hexdigest()[:10]
    for backend in settings["general"]["backends"]:
        build = kernel / "build" / f"torch-{backend}"
        identifier = f"_entropy_attn_{backend}_{contents}"
        _copy(sources, build)
        operators = (PACKAGE / "_ops.py").read_text(encoding="utf-8")
        assert operators.count(NAMESPACE) == 1
        (build / "_ops.py").write_text(operators.replace(NAMESPACE, f"{identifier}::"), encoding="utf-8")
        metadata = json.dumps(_metadata(build, settings["general"], identifier, backend), indent=2)
        (build / "metadata.json").write_text(metadata + "\n", encoding="utf-8")
    if repo_id is not None:
        environment = jinja2.Environment(
            trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
        )  # fmt: skip
        card = environment.from_string((kernel / "CARD.md").read_text(encoding="utf-8"))
        text = card.render(repo_id=repo_id, **{name: settings["general"][name] for name in ("license", "version")})
        (kernel / "build" / "CARD.md").write_text(text, encoding="utf-8")


def _metadata(build: Path, general: dict[str, Any], identifier: str, backend: str) -> dict[str, Any]:
    """What `kernels` reads before it imports a build."""
    return {
        "name": general["name"],
        "id": identifier,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": _digests(build)},
    }


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, in base64, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in files
    }


def _copy(source: Path, target: Path, suffixes: set[str] | None = None) -> None:
    """A file, or the files of a folder with one of these suffixes; never compiled Python."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    for path in sorted(source.iterdir()):
        wanted = path.suffix in suffixes if suffixes else path.suffix != ".pyc"
        if path.is_dir() and path.name != "__pycache__":
            _copy(path, target / path.name, suffixes)
        elif path.is_file() and wanted:
            _copy(path, target / path.name)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new or an empty folder")
    parser.add_argument("--repo-id", help="OWNER/NAME of the repository on the Hub")
    args = parser.parse_args(argv)
    try:
        export(args.out, args.repo_id)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
