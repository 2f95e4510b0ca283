"""Explicit schedules of TMA, mbarriers and wgmma: correct as written, and each omitted wait or arrival is found."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")

from .card import emulated
from .gluon_product import product
from .program import Finding


def operands(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).half() for shape in ((128, 64 * steps), (64 * steps, 64))]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("stages, steps", [(1, 3), (2, 1), (2, 5), (3, 4)])
def test_a_product_through_a_ring(stages, steps, seed):
    a, b = operands(steps)
    with emulated("sm_90", seed=seed):
        c = product(a, b, stages)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize(
    "left_out, kinds",
    [
        ("wait for an empty stage", {"race", "operand"}),
        ("wait for a full stage", {"race", "flight", "uninitialised"}),
        ("wait for the product", {"race", "operand"}),
        ("arrival", {"deadlock"}),
        ("wait for the store", {"operand"}),
    ],
)
def test_an_omitted_wait_or_arrival_is_found(left_out, kinds):
    with pytest.raises(Finding) as found, emulated("sm_90"):
        product(*operands(5), left_out=left_out)
    assert found.value.kind in kinds
    assert "gluon_product.py:" in str(found.value)
