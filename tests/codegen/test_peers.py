"""Kernels of others, compiled for Hopper and read by the same reader as ours."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from . import sass

HAS_FLASH4 = importlib.util.find_spec("cutlass") is not None and importlib.util.find_spec("flash_attn") is not None


@pytest.fixture(scope="module")
def peers():
    from benchmarks.kernels import peers  # not at collection: it imports the compiler

    return peers


@pytest.mark.skipif(not HAS_FLASH4, reason="FlashAttention-4 is not installed: pip install '.[peers]'")
def test_flash4_and_its_entropy(peers):
    """Entropy adds one FMA per score and no exponential, as in our kernel."""
    off, on = (peers.by_flash4(64, entropy).row() for entropy in (False, True))
    for row in (off, on):
        assert row["kernel"] == "FlashAttention-4" and "flash-attn-4" in row["compiler"]
        assert row["products"] > 0 and row["spills"] == 0
    assert off["exp"] == on["exp"] and off["products"] == on["products"]
    assert 0.9 <= float(on["fma"]) - float(off["fma"]) <= 1.2
    assert off == peers.by_flash4(64, False).row(), "the kernel without entropy is changed by the one with it"


def test_flash4_is_refused_by_name_where_it_is_missing(peers, monkeypatch):
    peers.flash4._package.cache_clear()
    monkeypatch.delitem(sys.modules, "cutlass", raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    with pytest.raises(ModuleNotFoundError, match=r"FlashAttention-4 is not installed: pip install '\.\[peers\]'"):
        peers.flash4.compile_forward(64, False)


def test_flash4_needs_a_process_of_its_own(peers, monkeypatch):
    """It reads its target when it is imported."""
    peers.flash4._package.cache_clear()
    monkeypatch.setitem(sys.modules, "cutlass", sys)
    with pytest.raises(RuntimeError, match="expected a process that has not imported cutlass"):
        peers.flash4.compile_forward(64, False)


FILE = """
import triton
import triton.language as tl

DEVICE = triton.runtime.driver.active.get_active_torch_device()
assert triton.runtime.driver.active.get_current_target().arch == 90


@triton.autotune([triton.Config({"BLOCK_M": 128, "BLOCK_N": n}, num_stages=2, num_warps=w) for n, w in CONFIGS], key=[])
@triton.jit
def _attn_fwd(sm_scale, M, Z, H, desc_q, desc_k, desc_v, desc_o, N_CTX, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
              BLOCK_N: tl.constexpr, FP8_OUTPUT: tl.constexpr, STAGE: tl.constexpr, warp_specialize: tl.constexpr,
              IS_HOPPER: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_M
    q = desc_q.load([rows, 0])
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, N_CTX, BLOCK_N):
        p = tl.math.exp2(tl.dot(q, desc_k.load([start, 0]).T) * sm_scale)
        total += tl.sum(p, 1)
        acc = tl.dot(p.to(tl.float16), desc_v.load([start, 0]), acc)
    tl.store(M + rows + tl.arange(0, BLOCK_M), total)
    desc_o.store([rows, 0], acc.to(tl.float16))


def prune_invalid_configs(configs, named_args, **kwargs):
    return configs
"""


def test_a_file_like_the_tutorial(peers, tmp_path):
    """Of two tiles, the one whose loop is cheaper; a tile wider than the head dim is left out."""
    path = tmp_path / "attention.py"
    path.write_text(FILE.replace("CONFIGS", "[(32, 4), (64, 4), (128, 8)]"))
    row = peers.by_tutorial(path, 64).row()
    assert (row["kernel"], row["block_m"], row["block_n"], row["warps"]) == ("Triton's tutorial", 128, 64, 4)
    assert row["entropy"] == "off" and row["spills"] == 0 and row["products"] > 0
    assert row["compiler"].endswith(peers.tutorial.version(path))


def test_a_file_without_the_kernel_is_refused(peers, tmp_path):
    path = tmp_path / "attention.py"
    path.write_text("prune_invalid_configs = None\n")
    with pytest.raises(
        ValueError, match=r"expected .*attention\.py to have _attn_fwd and prune_invalid_configs, but _attn_fwd"
    ):
        peers.tutorial.load(path)


def test_the_version_of_a_file_is_that_of_git(peers, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    assert peers.tutorial.version(path) == "blob ce013625030b"  # git hash-object


def test_a_loop_with_another_number_of_scores_is_refused(peers):
    exponential = sass.Instruction("MUFU.EX2", "R1, R2", False)
    listing = sass.Listing([exponential] * 64, [exponential] * 64)
    counted = sass.histogram(listing.loop)
    code = peers.Code(96, 0, 0, 1024, program=counted, loop=counted, listing=listing)
    launch = peers.Launch("sm_90", 64, "plain", False, 128, 128, 2, 8, 8, 64)
    assert peers.codegen.counts(launch, code)["exp"] == "1.00"
    wider = peers.Launch("sm_90", 64, "plain", False, 128, 256, 2, 8, 8, 64)
    with pytest.raises(ValueError, match="expected 128 scores a thread and few more, got 64 exponentials"):
        peers.codegen.counts(wider, code)


def test_options_are_checked_before_any_work(peers, monkeypatch, capsys, tmp_path):
    for arguments, message in (([], "expected at least one of"), (["--tutorial", str(tmp_path)], "expected a file")):
        monkeypatch.setattr("sys.argv", ["peers", *arguments])
        with pytest.raises(SystemExit):
            peers.main()
        assert message in capsys.readouterr().err
