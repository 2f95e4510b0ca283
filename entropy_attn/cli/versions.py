"""Versions of Python, this package and its dependencies."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("torch", "triton", "diffusers", "transformers")


def versions() -> dict[str, str | None]:
    """{name: version}; None for a package that is not installed."""
    from entropy_attn import __version__

    found: dict[str, str | None] = {"python": platform.python_version(), "entropy_attn": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
