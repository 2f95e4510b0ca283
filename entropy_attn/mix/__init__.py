"""Attention outputs mixed: a call is answered twice, and a function of both answers goes on.

`ea.apply(pipe, mix=...)`. A mix says in which layers, what the second answer is computed from, and how it is combined
with the first: a subclass of `Mix` with `other` and `combine`. `NAG` and `SoftPAG` are two published ones. docs/mix.md
has examples.
"""

from __future__ import annotations

from entropy_attn.mix.base import Identity, Mix, Other, OtherScale, OtherText, OwnText
from entropy_attn.mix.nag import NAG
from entropy_attn.mix.soft_pag import SoftPAG

__all__ = ["NAG", "Identity", "Mix", "Other", "OtherScale", "OtherText", "OwnText", "SoftPAG"]
