"""The configuration table of the forward kernel, which needs neither Triton nor a GPU."""

from __future__ import annotations

import pytest
import torch

from entropy_attn.kernels.common.head_dims import MAX_CHUNKS, head_dim_chunks
from entropy_attn.kernels.common.targets import TARGETS
from entropy_attn.kernels.common.tensors import Chunk, HeadDim
from entropy_attn.kernels.forward.configs import ForwardConfig, forward_candidates, forward_config

HEAD_DIMS = range(16, 257, 8)


@pytest.mark.parametrize(
    "head_dim, chunks",
    [(16, (16,)), (24, (32,)), (40, (32, 16)), (64, (64,)), (72, (64, 16)), (80, (64, 16)), (96, (64, 32)),
     (112, (64, 32, 16)), (128, (128,)), (160, (128, 32)), (248, (256,)), (256, (256,))],
)  # fmt: skip
def test_chunks(head_dim, chunks):
    assert head_dim_chunks(head_dim) == chunks


@pytest.mark.parametrize("max_chunk", [128, 256])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_chunks_cover_every_head_dim_closely(head_dim, max_chunk):
    chunks = head_dim_chunks(head_dim, max_chunk)
    waste = 32 if head_dim <= 192 else 64  # above 192, two chunks of 128 need fewer registers than three smaller ones
    assert head_dim <= sum(chunks) < head_dim + waste and len(chunks) <= MAX_CHUNKS
    assert all(chunk in (16, 32, 64, 128, 256) and chunk <= max_chunk for chunk in chunks)
    assert sum(chunks) - chunks[-1] < head_dim  # every chunk has columns of the head dim


@pytest.mark.parametrize("head_dim", [8, 20, 264, 0, -16])
def test_other_head_dims_are_refused(head_dim):
    with pytest.raises(ValueError, match=f"multiple of 8 from 16 to 256, got {head_dim}"):
        head_dim_chunks(head_dim)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_call_has_a_configuration(target, dtype):
    for head_dim in HEAD_DIMS:
        for has_mask in (False, True):
            for seqlen_k in (None, 1, 77, 4096):
                for descriptors in (False, True):
                    options = {"seqlen_k": seqlen_k, "has_mask": has_mask, "descriptors": descriptors}
                    config = forward_config(target, head_dim, head_dim, dtype, **options)
                    assert config == forward_candidates(target, head_dim, head_dim, dtype, **options)[0]
                    assert config.in_chunks(head_dim).width >= head_dim
                    assert descriptors or not config.descriptors
                    assert config.block_m % 16 == 0 and config.block_n % 16 == 0


def test_the_wider_of_two_head_dims_decides():
    wide = forward_config("sm_90", 256, 256, torch.float16)
    assert forward_config("sm_90", 64, 256, torch.float16) == forward_config("sm_90", 256, 64, torch.float16) == wide


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match=r"target: expected one of sm_80, .*got 'sm_70'"):
        forward_config("sm_70", 64, 64, torch.float16)


def test_padding_instead_of_splitting():
    assert ForwardConfig(128, 128, 8, 2, split_d=False).in_chunks(160) == HeadDim(160, (Chunk(0, 256),))
    assert ForwardConfig(128, 128, 8, 2, max_chunk=128).in_chunks(256).chunks == (Chunk(0, 128), Chunk(128, 128))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("head_dim", [40, 128, 160])
def test_how_many_candidates_there_are(target, head_dim):
    """At least two, as tests/gpu expects, except for float32, which has one."""
    for dtype, least in ((torch.float16, 4), (torch.bfloat16, 4), (torch.float32, 1)):
        candidates = forward_candidates(target, head_dim, head_dim, dtype, seqlen_k=333)
        assert len(set(candidates)) == len(candidates) >= least
        assert dtype != torch.float32 or len(candidates) == 1
