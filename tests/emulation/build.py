"""C sources to shared libraries by the system's compiler, kept between runs by what went into them."""

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
    """The system's C compiler, which CC names where it is set; None where there is none."""
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entropy-attn-emulation"


def library(name: str, sources: list[Path], includes: list[Path] = (), soname: str | None = None) -> Path:
    """The library made of some sources; its name on disk holds what it was made of."""
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
            os.replace(made, path)  # in one step: another process may be making it as well
    return path


def _processor() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
