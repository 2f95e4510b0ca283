"""The namespace of torch's operators for attention.

A file of its own, with the names that Hugging Face's kernel builder gives them: in a kernel of the Hub another file is in
its place, with a namespace for each build, so that several can be loaded in one process (docs/hub-kernels.md).
"""

from __future__ import annotations


def add_op_namespace_prefix(op_name: str) -> str:
    """`namespace::op_name`."""
    return f"entropy_attn::{op_name}"
