"""The backward kernels' shipped configurations, compiled for their GPUs: no spills, no lost matrix unit."""

from __future__ import annotations

import functools

import pytest
import torch

from entropy_attn.kernels.backward.configs import ALL_CHUNKS, backward_config
from entropy_attn.kernels.backward.key import attention_backward_key
from entropy_attn.kernels.backward.launch import BackwardCall, Launch
from entropy_attn.kernels.backward.plan import largest_values
from entropy_attn.kernels.backward.query import attention_backward_query
from entropy_attn.kernels.backward.rows import attention_backward_rows
from entropy_attn.kernels.common.arguments import compile_options
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.support import backward_unsupported
from entropy_attn.kernels.common.targets import TARGETS

from .aot import PACKED, Code, assert_clean, compile_kernel
from .cases import PARTLY_FILLED, table_cases

HEADS = 8
ADDED = torch.empty(1, HEADS, 1000, 1000, dtype=torch.float16)
BOOLEAN = torch.empty(2, 1, 1000, 1000, dtype=torch.bool)


def cases(*extra: int, dtype: torch.dtype = torch.float16, **options: bool) -> list[tuple[str, int, str]]:
    """The rows of the tables of dQ, which also cover the kernel of row statistics, and of dK and dV."""

    def configuration(part: str, target: str, head_dim: int) -> tuple | None:
        if backward_unsupported(target, head_dim, head_dim, dtype, **options):
            return None
        config = backward_config(target, head_dim, head_dim, dtype, **options)
        return (config.query,) if part == "query" else (config.key, config.separate)

    parts = ((part, functools.partial(configuration, part)) for part in ("query", "key"))
    return [(target, head_dim, part) for part, of in parts for target, head_dim in table_cases(of, TARGETS, *extra)]


def make_call(
    target: str,
    head_dim: int,
    *,
    dtype: torch.dtype = torch.float16,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
    entropy: bool = True,
    has_map: bool = False,
    scale: torch.Tensor | None = None,
    layout: str = "bhsd",
    seqlen_k: int = 1000,
    **of_keys: object,
) -> BackwardCall:
    """A call as the launcher makes it. Its lengths are no multiples of 16, so nothing is specialized on them."""

    def tensor(seqlen: int = 1000) -> torch.Tensor:
        if layout == "bshd":
            return torch.empty(2, seqlen, HEADS, head_dim, dtype=dtype).transpose(1, 2)
        return torch.empty(2, HEADS, seqlen, head_dim, dtype=dtype)

    rows = torch.empty(2, HEADS, 1000)
    statistics = rows if entropy else None
    call = AttentionCall(
        tensor(), tensor(seqlen_k), tensor(seqlen_k), mask, is_causal, scale, map_keys=(0, 77) if has_map else None,
        **of_keys,
    )  # fmt: skip
    return BackwardCall(
        call, out=tensor(), lse=rows, entropy=statistics, grad_out=tensor(), grad_lse=statistics,
        grad_entropy=statistics, grad_map=torch.empty(2, 1000, 77) if has_map else None,
        dq=tensor(), dk=tensor(seqlen_k), dv=tensor(seqlen_k), need_dscale=scale is not None, target=target,
    )  # fmt: skip


def launches(call: BackwardCall, part: str) -> list[Launch]:
    """The launches of a call for one part; of one launch per chunk only the first, which is the widest."""
    config = call.table_config()
    rows = call.allocate_rows(config)
    bound = None if rows.bounds is None else rows.bounds[..., 0]
    parts, sums = call.allocate_scale_parts(config), call.allocate_key_sums(config)
    largest = largest_values(call.varying(rows, parts, sums))
    found = [call.rows_launch(config, rows, *largest), *call.gradient_launches(config, rows, bound, parts, sums)]
    kernels = {"query": (attention_backward_rows, attention_backward_query), "key": (attention_backward_key,)}
    needs = ("NEED_DQ", "NEED_DK", "NEED_DV")
    return [
        launch
        for launch in found
        if launch.kernel in kernels[part] and all(launch.arguments.get(n, 0) in (0, 1, ALL_CHUNKS) for n in needs)
    ]


def compile_launch(launch: Launch, target: str) -> Code:
    options = compile_options(launch.config, target, by_pointer=not launch.config.descriptors)
    return compile_kernel(launch.kernel, launch.arguments, target, options)


def compiled(target: str, head_dim: int, part: str, **options) -> list[tuple[Launch, Code]]:
    call = make_call(target, head_dim, **options)
    return [(launch, compile_launch(launch, target)) for launch in launches(call, part)]


def assert_good(built: list[tuple[Launch, Code]], target: str, dtype: torch.dtype = torch.float16) -> None:
    for launch, code in built:
        masked = launch.arguments["MASK"] or launch.arguments["grad_map"].ptr is not None
        assert_clean(code, target)
        if launch.kernel is attention_backward_rows:
            continue
        if dtype == torch.float32 and target != "gfx942":
            assert code.loop["FFMA"] + 2 * code.loop["FFMA2"] > 256
        else:
            assert code.matrix_instructions > 0
        if target != "gfx942" and not masked:
            assert not code.warnings  # for example that wgmma is serialized
            assert code.registers >= 64, "the assembler used very few registers"


def loop_length(code: Code) -> int:
    """Number of instructions; a packed one counts as two, because the assembler pairs them as it likes."""
    return code.loop.total() + sum(code.loop[op] for op in PACKED)


@pytest.mark.parametrize("target, head_dim, part", cases(64, 128, PARTLY_FILLED))
def test_table(target, head_dim, part):
    """With the gradients of out, lse and entropy; causal calls contain the loops of other calls, too."""
    with_entropy = compiled(target, head_dim, part, is_causal=True)
    assert_good(with_entropy, target)
    if head_dim not in (64, 128):
        return
    without = compiled(target, head_dim, part, is_causal=True, entropy=False)
    assert_good(without, target)
    for (launch, on), (_, off) in zip(with_entropy, without, strict=True):
        if launch.kernel is not attention_backward_rows:
            assert loop_length(on) <= 1.20 * loop_length(off), f"the entropy's gradient in {launch.kernel.__name__}"


@pytest.mark.parametrize("target, head_dim, part", cases(PARTLY_FILLED, has_mask=True, has_map=True))
def test_masks_and_maps(target, head_dim, part):
    assert_good(compiled(target, head_dim, part, mask=ADDED, has_map=True), target)


@pytest.mark.parametrize("head_dim", (40, 64, 128))
def test_one_pass(head_dim):
    """With 77 keys: five products a tile, in one kernel."""
    usual = {"seqlen_k": 77, "is_causal": True}
    for options in (usual, {**usual, "layout": "bshd", "dtype": torch.bfloat16, "entropy": False}):
        built = compiled("sm_90", head_dim, "key", **options)
        (launch,) = (launch for launch, _ in built)
        assert launch.arguments["dq"].ptr is not None and launch.arguments["parts"] > 1
        assert_good(built, "sm_90")
    masked = backward_config("sm_90", head_dim, head_dim, torch.float16, has_mask=True, has_map=True).one_pass
    assert (masked is not None) == (head_dim == 64)
    if masked is not None:
        assert_good(compiled("sm_90", head_dim, "key", seqlen_k=77, mask=ADDED[..., :77], has_map=True), "sm_90")


@pytest.mark.parametrize("part", ["query", "key"])
@pytest.mark.parametrize("head_dim", (40, 64, 80, 128, 160))
def test_descriptors(head_dim, part):
    """Of a Triton that fetches by pointer in one stage."""
    config = backward_config("sm_90", head_dim, head_dim, torch.float16, one_stage=True, descriptors=(True, True))
    call = make_call("sm_90", head_dim, is_causal=True)
    call.table_config = lambda: config
    built = [(launch, compile_launch(launch, "sm_90")) for launch in launches(call, part)]
    assert_good(built, "sm_90")
    for launch, code in built:
        assert launch.kernel is attention_backward_rows or code.loop["UTMALDG"] >= 2


@pytest.mark.parametrize("part", ["query", "key"])
@pytest.mark.parametrize("option", [{"mask": BOOLEAN}, {"has_map": True, "is_causal": True}], ids=["mask", "map"])
@pytest.mark.parametrize("target", ("sm_80", "sm_90", "gfx942"))
def test_one_of_a_mask_and_a_map(target, option, part):
    assert_good(compiled(target, 112, part, **option), target)


@pytest.mark.parametrize("part", ["query", "key"])
@pytest.mark.parametrize("head_dim", (40, 160))
@pytest.mark.parametrize("target", ("sm_80", "sm_90", "gfx942"))
def test_scale_s_gradient_and_heads_inside_tokens(target, head_dim, part):
    built = compiled(target, head_dim, part, scale=torch.ones(HEADS), layout="bshd", dtype=torch.bfloat16)
    assert_good(built, target)


@pytest.mark.parametrize("part", ["query", "key"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_scale_of_each_sample_and_head(target, part):
    assert_good(compiled(target, 64, part, scale=torch.ones(2, HEADS)), target)


@pytest.mark.parametrize("part", ["query", "key"])
@pytest.mark.parametrize("head_dim", (64, 128))
@pytest.mark.parametrize("target", TARGETS)
def test_factors_and_biases_of_keys_for_some_queries(target, head_dim, part):
    """They have the tiles of masked calls."""
    tables = {name: torch.empty(2, HEADS, 1, 1000) for name in ("key_scale", "key_bias")}
    assert_good(compiled(target, head_dim, part, **tables, key_rows=(13, 900)), target)


@pytest.mark.parametrize("target, head_dim, part", cases(dtype=torch.float32, has_mask=True, has_map=True))
def test_float32(target, head_dim, part):
    """Exact products use matrix instructions on AMD and FMA on NVIDIA."""
    built = compiled(target, head_dim, part, dtype=torch.float32, mask=ADDED, has_map=True)
    assert_good(built, target, torch.float32)
