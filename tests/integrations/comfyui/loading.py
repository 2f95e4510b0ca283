"""The node pack as a package: the folder is no part of an installed one, and ComfyUI loads it by its path as well."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[3] / "integrations" / "comfyui"
NAME = "entropy_attn_comfyui"


def pack() -> ModuleType:
    """The package, loaded once."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[NAME]


def part(name: str) -> ModuleType:
    """One of its modules."""
    pack()
    return importlib.import_module(f"{NAME}.{name}")
