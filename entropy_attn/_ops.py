"""The namespace of torch's operators for attention.

A file of its own, whose names are those of Hugging Face's kernel-builder: a kernel of the Hub has another file in its
place, with a namespace for each build, so that one process can load several (docs/hub-kernels.md).
"""

from __future__ import annotations


def add_op_namespace_prefix(op_name: str) -> str:
    """`namespace::op_name`."""
    return f"entropy_attn::{op_name}"
