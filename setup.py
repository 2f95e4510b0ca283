"""What pyproject.toml cannot say: the long description, and that the kernels are there."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def long_description() -> str:
    """README.md for a page without the repository's files: no pictures of it, and links to it as plain text."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n?", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)]*)\)", r"\1 (`\2`)", text).replace("[`", "`")


if not (HERE / "entropy_attn" / "kernels" / "forward" / "kernel.py").is_file():
    raise SystemExit(
        "entropy_attn/kernels is not the link to ../kernels that it is in git: this file system, or git's "
        "core.symlinks=false, made a plain file of it. Remove it and copy the folder kernels/ to "
        "entropy_attn/kernels, or check out with `git clone -c core.symlinks=true`."
    )

setup(long_description=long_description(), long_description_content_type="text/markdown")
