"""The kernels with masks of every size, rank and dtype, with different groups of heads, and with NaN."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.calls import DEVICE
from tests.support import mask_checks as checks


@pytest.mark.parametrize("keys", [12, 300])  # a map in one pass, and in a sweep
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_large_masks(dtype, keys):
    checks.check_large_masks("triton", DEVICE, dtype, keys)


def test_gradients_beside_large_masks():
    checks.check_gradients_beside_large_masks("triton", DEVICE)


@pytest.mark.parametrize("keys, sources", [(7, checks.SOURCES), (140, ("query",))])
def test_nan(keys, sources):
    checks.check_nan("triton", DEVICE, keys, sources)


def test_ranks_and_dtypes_of_masks():
    checks.check_mask_ranks_and_dtypes("triton", DEVICE, (torch.float16,), checks.SHAPES[:5])


def test_grouped_heads_that_differ():
    checks.check_grouped_heads_that_differ("triton", DEVICE, checks.GROUPS[:2])
