"""What the context parallelism of diffusers 0.42 does not promise. It is experimental, and older releases have none.

tests/spread/test_names.py pins each name, and reports the one that moved.
"""

from __future__ import annotations

from diffusers.models._modeling_parallel import gather_size_by_comm
from diffusers.models.attention_dispatch import SeqAllToAllDim, all_to_all_single_any_o_async
from diffusers.models.attention_dispatch import _templated_context_parallel_attention as templated_attention

__all__ = ["SeqAllToAllDim", "all_to_all_single_any_o_async", "gather_size_by_comm", "templated_attention"]
