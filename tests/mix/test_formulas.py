"""The formulas of mixes against independent writings of them in float64, one query after the other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from entropy_attn.mix import NAG, Identity, Mix, OtherScale, OtherText, SoftPAG
from entropy_attn.scale import CallInfo

B, H, NQ, NK, DV = 2, 3, 5, 7, 4
CROSS = CallInfo("mid.attn2", "cross", NQ, NK, H, 8, text_tokens=NK, text="all")
SELF = CallInfo("up.1.attn1", "self", NQ, NQ, H, 8)
JOINT = CallInfo("blocks.0.attn", "joint", NQ + 2, NQ + 2, H, 8, text_tokens=2, text="last")


def answers(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out, other = (torch.randn(B, H, NQ, DV, dtype=torch.float64, generator=generator) for _ in range(2))
    return out, other, torch.randn(B, H, NK, DV, dtype=torch.float64, generator=generator)


def nag_by_hand(out: torch.Tensor, other: torch.Tensor, strength: float, tau: float, alpha: float) -> torch.Tensor:
    """Chen et al., with the heads of a query side by side, as the norms see them."""
    found = torch.empty_like(out)
    for b in range(B):
        for q in range(NQ):
            positive, negative = (z[b, :, q].flatten().tolist() for z in (out, other))
            guided = [p * (1 + strength) - n * strength for p, n in zip(positive, negative, strict=True)]
            ratio = math.fsum(map(abs, guided)) / math.fsum(map(abs, positive))
            limited = [g * min(ratio, tau) / ratio for g in guided]
            mixed = [g * alpha + p * (1 - alpha) for g, p in zip(limited, positive, strict=True)]
            found[b, :, q] = torch.tensor(mixed, dtype=torch.float64).view(H, DV)
    return found


@pytest.mark.parametrize(
    ("strength", "tau", "alpha"), [(4.0, 2.5, 0.25), (0.5, 100.0, 1.0), (9.0, 1.0, 0.5), (3, 2, 0)]
)
def test_nag(strength, tau, alpha):
    out, other, value = answers()
    found = NAG(strength, tau, alpha).combine(out, other, value, CROSS)
    torch.testing.assert_close(found, nag_by_hand(out, other, strength, tau, alpha), rtol=1e-13, atol=1e-14)
    assert (alpha == 0) == torch.equal(found, out)


def test_nag_of_zeros_and_in_half_precision():
    out, other, value = answers()
    out[0, :, 1] = 0.0  # the norm of Z+ is 0, so nothing is added
    found = NAG().combine(out, other, value, CROSS)
    assert torch.equal(found[0, :, 1], torch.zeros(H, DV, dtype=torch.float64)) and found.isfinite().all()
    nothing = torch.zeros_like(out)
    assert torch.equal(NAG().combine(nothing, nothing, value, CROSS), nothing)
    half = NAG().combine(*(each.half() for each in answers(1)), CROSS)
    assert half.dtype == torch.float32
    wanted = NAG().combine(*(each.half().double() for each in answers(1)), CROSS)
    torch.testing.assert_close(half, wanted.float(), rtol=1e-5, atol=1e-6)


def test_soft_pag_leads_the_probabilities_to_the_identity():
    generator = torch.Generator().manual_seed(2)
    probabilities = torch.rand(B, H, NQ, NQ, dtype=torch.float64, generator=generator).softmax(-1)
    value = torch.randn(B, H, NQ, DV, dtype=torch.float64, generator=generator)
    alphas = torch.zeros(H, 1, 1, dtype=torch.float64)
    alphas[1] = 0.3
    led = (1 - alphas) * probabilities + alphas * torch.eye(NQ, dtype=torch.float64)
    mix = SoftPAG(0.3, heads={"down": (0, 2), r"up\.1": [1]})
    torch.testing.assert_close(mix.combine(probabilities @ value, value, value, SELF), led @ value)
    whole = SoftPAG().combine(probabilities @ value, value, value, SELF)
    torch.testing.assert_close(whole, value)
    with pytest.raises(ValueError, match=r"heads: layer 'up\.1\.attn1' has 3 heads, got 5"):
        SoftPAG(heads={"up": (5,)}).combine(value, value, value, SELF)


def test_which_calls_are_answered_twice():
    assert NAG().other(CROSS) == NAG().other(JOINT) == OtherText("uncond")
    assert NAG().other(SELF) is None and NAG().other(replace(CROSS, text=None)) is None
    assert SoftPAG().other(SELF) == SoftPAG().other(JOINT) == Identity()
    assert SoftPAG().other(CROSS) is None and SoftPAG(heads={"up": (0,)}).other(JOINT) is None
    assert SoftPAG(heads={"up": (0,)}).other(SELF) == Identity()
    assert [SoftPAG(steps=(1, 3)).takes_step(step) for step in range(4)] == [False, True, False, True]
    assert NAG().needs_branches and not SoftPAG().needs_branches and SoftPAG(branch="uncond").needs_branches


def test_mixes_show_compare_and_hash_by_their_settings():
    assert SoftPAG(0.5, heads={"up": [1, 0, 1]}) == SoftPAG(0.5, heads={"up": (0, 1)})
    assert repr(NAG()) == "NAG(layers='all', steps=None, branch='cond', strength=4.0, tau=2.5, alpha=0.25, text=None)"
    assert {SoftPAG(heads={"up": [1]})} == {SoftPAG(heads=[("up", (1,))])}
    assert hash(NAG()) == hash(NAG()) != hash(NAG(3.0)) and "tau" in NAG()._repr_html_()


def test_a_mix_without_its_methods():
    with pytest.raises(NotImplementedError):
        Mix().other(SELF)
    with pytest.raises(NotImplementedError):
        Mix().combine(*answers(), SELF)
    with pytest.raises(ValueError, match=r"scale: expected a finite number, got nan"):
        OtherScale(math.nan)
