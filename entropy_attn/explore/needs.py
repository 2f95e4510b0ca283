"""The packages that the page needs, which nothing else does."""

from __future__ import annotations

import importlib

PACKAGES = {"altair": "altair", "vl_convert": "vl-convert-python"}  # {module: name in the registry}


def require() -> None:
    """Raise an ImportError that says what to install, before anything long runs."""
    for module, package in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise ImportError(f"the explorer needs {package}: pip install 'entropy-attn[explore]'") from error
