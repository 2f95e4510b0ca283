"""What a policy returns that gives keys a factor or a bias of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from entropy_attn.display import Settings
from entropy_attn.validation import expected

if TYPE_CHECKING:
    from entropy_attn.ops.key_groups import KeyValues


@dataclass(frozen=True, eq=False)
class KeyGroups(Settings):
    """A scale, and factors and biases by key, for one attention call: what a policy may return in place of a number.

    The arguments have the meanings of those of `ea.attention`, which checks them: the logits of a row are
    s_ij = scale * f_j * (q_i . k_j) + b_j + mask_ij. A policy that returns it states that with an attribute
    `gives_key_groups = True`: in a graph of torch.compile its calls then are operators that ask it.

    Args:
        scale: None for the model's default scale, a number, or a tensor of shape (), (H,) or (B, H).
        key_scale: factors on the products with certain keys.
        key_bias: what is added to the logits of certain keys.
        key_rows: the queries that both are for; None is all. `CallInfo.image_rows` are those of the image.
        branch: "cond" leaves the rows of the negative prompt as they are; a policy that returns it has an attribute
            `needs_branches = True`. None is for all rows of the batch.

    Raises:
        ValueError: neither `key_scale` nor `key_bias` is given, or `branch` is unknown.
    """

    scale: float | Tensor | None = None
    key_scale: KeyValues | None = None
    key_bias: KeyValues | None = None
    key_rows: tuple[int, int] | slice | Tensor | None = None
    branch: Literal["cond"] | None = None

    def __post_init__(self) -> None:
        if self.key_scale is None and self.key_bias is None:
            raise ValueError("key_scale, key_bias: expected at least one of them, got None and None")
        if self.branch not in (None, "cond"):
            raise ValueError(expected("branch", "None or 'cond'", self.branch))
