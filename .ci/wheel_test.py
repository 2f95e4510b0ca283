"""Build the source distribution, the wheel from it, and use the wheel in an empty environment in another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IN_SDIST = (
    ".ci/run",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "Makefile",
    "benchmarks/gpu/run.py",
    "constraints.txt",
    "docs/architecture.md",
    "docs/generate/architecture.py",
    "docs/images/architecture.svg",
    "entropy_attn/kernels/forward/kernel.py",
    "examples/README.md",
    "hub/build.toml",
    "kernels/README.md",
    "mkdocs.yml",
    "tests/gpu/conftest.py",
    "tests/support/oracle.py",
)
IN_WHEEL = (
    "py.typed",
    "integrations/diffusers/models/table.py",
    "kernels/README.md",
    "kernels/backward/key.py",
    "kernels/common/tiles.py",
    "kernels/forward/kernel.py",
    "kernels/forward/measured.csv",
    "kernels/maps/kernel.py",
    "shapes/README.md",
    "cli/help.py",
)


WHEEL_LIMIT = 40 * 2**20  # bytes; at most 16 MiB for each of the embedded models, and the code


def embedded_models() -> list[str]:
    """Every file of the embedded models that this checkout has."""
    package = ROOT / "entropy_attn"
    folders = [index.parent for index in package.glob("shapes/*/model_index.json")]
    return [path.relative_to(package).as_posix() for folder in folders for path in folder.rglob("*") if path.is_file()]


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return its output; exit with the output if the command fails."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True)
    print("$", *command, flush=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        away = Path(folder)
        run(sys.executable, "-m", "build", "--outdir", away / "dist")
        (sdist,), (wheel,) = (away / "dist").glob("*.tar.gz"), (away / "dist").glob("*.whl")
        held = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
        absent = [name for name in IN_SDIST if name not in held]
        names = zipfile.ZipFile(wheel).namelist()
        absent += [name for name in (*IN_WHEEL, *embedded_models()) if f"entropy_attn/{name}" not in names]
        if wheel.stat().st_size > WHEEL_LIMIT:
            sys.exit(f"{wheel.name}: expected at most {WHEEL_LIMIT} bytes, got {wheel.stat().st_size}")
        tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
        if absent or tops != {"entropy_attn"}:
            sys.exit(f"absent: {absent}; top folders of the wheel: {sorted(tops)}")

        # The tests run in the unpacked folder, with the packages of this environment.
        tarfile.open(sdist).extractall(away, filter="data")
        (unpacked,) = (path for path in away.glob("entropy_attn-*") if path.is_dir())
        tests = ("tests/test_layout.py", "tests/ops/test_reference.py")
        where = "import entropy_attn; print(entropy_attn.__file__)"
        assert run(sys.executable, "-c", where, cwd=unpacked).startswith(str(unpacked))
        run(
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *tests,
            cwd=unpacked,
            PYTHONPATH=str(unpacked),
        )

        venv.create(away / "venv", with_pip=True)
        python, command = away / "venv" / "bin" / "python", away / "venv" / "bin" / "entropy-attn"
        constraints = ("-c", ROOT / "constraints.txt")
        run(python, "-m", "pip", "install", "--quiet", *constraints, f"{wheel}[cli,diffusers]", cwd=away)
        assert "site-packages" in run(python, "-c", where, cwd=away)
        print(run(command, "--version", cwd=away), run(command, "info", cwd=away))
        load = "from entropy_attn import shapes as s; print(*(type(s.load_pipeline(n)).__name__ for n in s.MODELS))"
        kinds = run(python, "-c", load, cwd=away).split()
        assert len(kinds) == len({name.split("/")[1] for name in embedded_models()}) > 0, kinds
        run(command, "profile", "--sizes", "32", "--steps", "1", "--prompt", "a red circle", "--out", "out", cwd=away)
        for name in ("entropy.csv", "summary.json", "pictures.png"):
            assert (away / "out" / name).is_file(), name
    print("the wheel works")


if __name__ == "__main__":
    main()
