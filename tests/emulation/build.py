"""Compiles C sources to shared libraries with the system's compiler, and caches them by the hash of their sources."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ["-std=gnu11", "-shared", "-fPIC", "-O2", "-march=native", "-ffp-contract=off", "-Wall", "-Wextra"]


def compiler() -> str | None:
    """The C compiler that CC names, or else the system's; None if there is none."""
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entropy-attn-emulation"


def library(name: str, sources: list[Path], includes: list[Path] = (), soname: str | None = None) -> Path:
    """The path of the library of these sources; it is compiled if it is not in the cache."""
    cc = compiler()
    if cc is None:
        raise RuntimeError("the emulated card needs a C compiler: install gcc or clang, or set CC")
    flags = [*FLAGS, *(f"-I{i}" for i in includes), *([f"-Wl,-soname,{soname}"] if soname else [])]
    headers = [h for folder in {s.parent for s in sources} for h in sorted(folder.glob("*.h"))]
    parts = [cc, *flags, platform.machine(), _processor(), *(f.read_text() for f in (*sources, *headers))]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = cache_folder() / digest / (soname or f"{name}.so")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder, path.name)
            subprocess.run([cc, *flags, "-o", made, *sources, "-lm"], check=True)
            os.replace(made, path)  # atomic: another process may be compiling it, too
    return path


def _processor() -> str:
    """The properties of the processor that -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
