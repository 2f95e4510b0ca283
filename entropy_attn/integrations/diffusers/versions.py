"""What differs between the diffusers releases that are supported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The keyword of ``from_pretrained`` for the dtype of the weights, which diffusers 0.42 renamed."""
    import diffusers
    from packaging.version import Version

    return {"dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype": dtype}
