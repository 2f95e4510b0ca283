"""The copies by TMA under the names that this Triton has: 3.9 renamed them, and its old names raise."""

from __future__ import annotations

from triton.experimental.gluon.language.nvidia.hopper import tma

load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
