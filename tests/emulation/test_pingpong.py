"""The Gluon kernel: how a call reaches it, and that each wait, arrival or phase that is wrong or omitted is found."""

from __future__ import annotations

import importlib
import math
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import entropy_attn
from entropy_attn.kernels.common.arguments import scale_arguments
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.tensors import Scale
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.forward.configs import forward_candidates
from entropy_attn.kernels.forward.measured import Measured
from entropy_attn.kernels.pingpong.configs import Tiles
from tests.support.oracle import assert_matches_oracle, make_qkv

from . import build
from .card import emulated
from .program import Finding

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler: the emulated card is made of C")
KERNELS = Path(entropy_attn.__file__).parent / "kernels"
TILES = Tiles(2, 64, 2)
BLOCKS = 6  # of keys: each ring goes round three times
SEEDS = 8  # a stage that is released too early is filled too early only in some orders of the warps
OMITTED = "gl.static_assert(True)"
# A file, its correct text, the fault that replaces it, and the kinds of findings: which one depends on what the card
# meets first.
FAULTS = {
    "fetching does not wait until a stage is empty": (
        "producer.py", "mbarrier.wait(ring.empty.index(stage), phase)", OMITTED, {"race", "operand"},
    ),
    "fetching waits for the wrong phase": (
        "producer.py", "    phase = 1  # of", "    phase = 0  # of", {"deadlock"},
    ),
    "values are waited for in the wrong phase": (
        "consumer.py", "mbarrier.wait(v_ring.full.index(stage), phase)",
        "mbarrier.wait(v_ring.full.index(stage), phase ^ 1)", {"race", "flight", "uninitialised", "deadlock"},
    ),
    "a stage expects too few bytes": (
        "producer.py", "descriptors[0].block_type.shape[2] * 2", "descriptors[0].block_type.shape[2]", {"deadlock"},
    ),
    "no wait for the queries": (
        "consumer.py", "mbarrier.wait(work.q_full, 0)", OMITTED, {"race", "flight", "uninitialised"},
    ),
    "no wait for the first keys": (
        "consumer.py", "mbarrier.wait(work.k_ring.full.index(0), 0)", OMITTED, {"race", "flight", "uninitialised"},
    ),
    "no wait for the second keys": (
        "consumer.py", "mbarrier.wait(work.k_ring.full.index(1), 0, pred=work.blocks > 1)", OMITTED,
        {"race", "flight", "uninitialised"},
    ),
    "no wait for the keys of the next block": (
        "consumer.py", "mbarrier.wait(k_ring.full.index(third), third_phase, pred=j + 1 < work.blocks)", OMITTED,
        {"race", "flight", "uninitialised"},
    ),
    "a wait for keys that never come": (
        "consumer.py", "third_phase, pred=j + 1 < work.blocks)", "third_phase)", {"deadlock"},
    ),
    "no wait for values": (
        "consumer.py", "mbarrier.wait(v_ring.full.index(stage), phase)", OMITTED, {"race", "flight", "uninitialised"},
    ),
    "no wait for the last values": (
        "consumer.py", "mbarrier.wait(work.v_ring.full.index(stage), phase)", OMITTED,
        {"race", "flight", "uninitialised"},
    ),
    "the first keys are released while a product reads them": (
        "consumer.py", "    s = warpgroup_mma_wait(0, deps=[flying_s])\n"
        "    mbarrier.arrive(work.k_ring.empty.index(0), count=1)\n",
        "    mbarrier.arrive(work.k_ring.empty.index(0), count=1)\n"
        "    s = warpgroup_mma_wait(0, deps=[flying_s])\n", {"race", "operand"},
    ),
    "values are released while a product reads them": (
        "consumer.py", "    acc = _land(flying_acc, D)\n"
        "    mbarrier.arrive(v_ring.empty.index(stage), count=1)\n",
        "    mbarrier.arrive(v_ring.empty.index(stage), count=1)\n"
        "    acc = _land(flying_acc, D)\n", {"race", "operand"},
    ),
    "the first keys are not released": (
        "consumer.py", "mbarrier.arrive(work.k_ring.empty.index(0), count=1)", OMITTED, {"deadlock"},
    ),
    "keys are not released": (
        "consumer.py", "mbarrier.arrive(k_ring.empty.index(following), count=1)", OMITTED, {"deadlock"},
    ),
    "values are not released": (
        "consumer.py", "mbarrier.arrive(v_ring.empty.index(stage), count=1)", OMITTED, {"deadlock"},
    ),
    "the first turn is not passed on": (
        "consumer.py", "flying_s = _issue_scores(work.q_tiles, work.k_ring, 0, rows.donor, GROUP, D)\n"
        "    mbarrier.arrive(turn.next, count=1)",
        "flying_s = _issue_scores(work.q_tiles, work.k_ring, 0, rows.donor, GROUP, D)", {"deadlock"},
    ),
    "nobody has the first turn": (
        "kernel.py", "mbarrier.arrive(turns.index(0), count=1)", OMITTED, {"deadlock"},
    ),
    "an empty stage needs the arrival of one group alone": (
        "kernel.py", "_barriers(STAGES, GROUPS)", "_barriers(STAGES, 1)", {"race", "operand", "deadlock"},
    ),
    "the program ends before the output is stored": (
        "consumer.py", "tma.store_wait(0)", OMITTED, {"operand"},
    ),
}  # fmt: skip


def copied(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernels in a package of their own."""
    shutil.copytree(KERNELS, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(folder)
    return folder / name / "pingpong"


def run(module: ModuleType, seed: int = 0) -> None:
    """One call on the card, whose warps take turns in an order that depends on the seed."""
    q, k, v = make_qkv(1, 1, 70, 64 * BLOCKS - 30, 40, dtype=torch.float16)
    outputs = [torch.full_like(q, math.nan), *(torch.full(q.shape[:3], math.nan) for _ in range(2))]
    with emulated("sm_90", seed, limit=3_000_000) as card:
        for each in outputs:
            card.memory.add(each, written=False)
        scale = Scale(*scale_arguments(None, 40, quarters=False))
        kernel, arguments = module.kernel_arguments(AttentionCall(q, k, v), outputs, scale, TILES)
        kernel[(1,)](**arguments, num_warps=4, maxnreg=TILES.max_registers, enable_fp_fusion=True)
    assert_matches_oracle(outputs, q, k, v)


def test_the_copied_kernel_is_right(tmp_path, monkeypatch):
    copied(tmp_path, "sound_kernels", monkeypatch)
    run(importlib.import_module("sound_kernels.pingpong.launch"))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_source_is_found(name, tmp_path, monkeypatch):
    file, sound, faulty, kinds = FAULTS[name]
    package = f"faulty_kernels_{list(FAULTS).index(name)}"
    path = copied(tmp_path, package, monkeypatch) / file
    text = path.read_text()
    assert text.count(sound) == 1
    path.write_text(text.replace(sound, faulty))
    try:
        with pytest.raises(Finding) as found:
            for seed in range(SEEDS):
                run(importlib.import_module(f"{package}.pingpong.launch"), seed)
    finally:
        for module in [each for each in sys.modules if each.split(".")[0] == package]:
            del sys.modules[module]
    assert found.value.kind in kinds, str(found.value)
    if found.value.kind != "deadlock":  # which names who waits for what
        assert re.search(r"(kernel|producer|consumer)\.py:\d+", str(found.value))


HARMLESS = {
    # The groups issue products when they like: the result is the same, the overlap is left to luck.
    "no turns": {"mbarrier.wait(turn.mine, 0)": OMITTED, "mbarrier.wait(turn.mine, j & 1)": OMITTED},
    # Their stage is filled again behind values, whose stage is not empty before this product has ended.
    "later keys are released while a product reads them": {
        "    s = warpgroup_mma_wait(len(D.chunks), deps=[flying_s])\n"
        "    mbarrier.arrive(k_ring.empty.index(following), count=1)\n":
        "    mbarrier.arrive(k_ring.empty.index(following), count=1)\n"
        "    s = warpgroup_mma_wait(len(D.chunks), deps=[flying_s])\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_the_result_does_not_need(name, tmp_path, monkeypatch):
    package = f"altered_kernels_{list(HARMLESS).index(name)}"
    path = copied(tmp_path, package, monkeypatch) / "consumer.py"
    text = path.read_text()
    for sound, other in HARMLESS[name].items():
        assert text.count(sound) == 1
        text = text.replace(sound, other)
    path.write_text(text)
    for seed in range(SEEDS):
        run(importlib.import_module(f"{package}.pingpong.launch"), seed)


def test_a_call_reaches_it_where_it_was_measured_to_be_the_fastest(monkeypatch):
    """Through the public function; calls that it cannot serve take another schedule."""
    candidates = forward_candidates("sm_90", 64, 64, torch.float16)
    config = next(each for each in candidates if each.schedule == "pingpong")
    monkeypatch.setattr(launch, "measured", lambda *shape, **options: Measured(config, 1.0, 2.0))
    q, k, v = make_qkv(1, 1, 70, 300, 64, dtype=torch.float16)
    skewed = torch.cat([q, q[..., :1]], dim=3)[..., :64]  # rows that are not aligned
    with emulated("sm_90") as card:
        for query, mask in ((q, None), (q, None), (skewed, None), (q, torch.ones(70, 300, dtype=torch.bool))):
            options = {"attn_mask": mask, "return_lse": True, "return_entropy": True}
            result = entropy_attn.attention(query, k, v, impl="triton", **options)
            assert_matches_oracle((result.out, result.lse, result.entropy), query, k, v, attn_mask=mask)
    names = [each.kernel for each in card.launches]
    assert [name == "attention_forward_pingpong" for name in names] == [True, True, False, False], names
