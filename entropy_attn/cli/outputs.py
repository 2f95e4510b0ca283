"""Output files and folders: made, and proved to be writable, before anything long runs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def output_folder(path: Path, option: str = "--out") -> Path:
    """Make the folder, and prove that files can be written to it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{option}: expected a folder that can be written to, got {str(path)!r}: {reason}") from error
    return path


def output_image(path: Path, option: str = "--out") -> Path:
    from PIL import Image

    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{option}: expected the name of an image file, such as .png or .jpg, got {str(path)!r}")
    return _output_file(path, option)


def output_page(path: Path, option: str = "--out") -> Path:
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{option}: expected a name that ends in .html, got {str(path)!r}")
    return _output_file(path, option)


def output_table(path: Path) -> Path:
    if path.suffix.lower() != ".csv":
        raise ValueError(f"--csv: expected a name that ends in .csv, got {str(path)!r}")
    return _output_file(path, "--csv")


def _output_file(path: Path, option: str) -> Path:
    if path.is_dir():
        raise ValueError(f"{option}: expected a file name, got the folder {str(path)!r}")
    output_folder(path.parent, option)
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{option}: expected a file that can be written to, got {str(path)!r}: Permission denied")
    return path
