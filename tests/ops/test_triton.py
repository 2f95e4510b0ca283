"""`impl="triton"` through the public calls, in Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, so the calls run in a separate process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from entropy_attn.kernels.common import support
from entropy_attn.kernels.common.arguments import compile_options
from entropy_attn.kernels.forward.configs import forward_config

pytest.importorskip("triton")

CALLS = """
import torch
import entropy_attn as ea
from tests.support.oracle import assert_matches_oracle, make_qkv

def check(dtype, statistics=True, **options):
    gqa = {"enable_gqa": True} if options.pop("grouped", False) else {}
    q, k, v = make_qkv(1, 4, 35, 49, 40, heads_kv=2 if gqa else 4, head_dim_v=24, dtype=dtype)
    options |= gqa
    r = ea.attention(q, k, v, **options, return_lse=statistics, return_entropy=statistics, impl="triton")
    assert isinstance(r, ea.AttentionOutput) and r.out.dtype == dtype
    assert (r.lse is None) == (r.entropy is None) == (not statistics)
    assert not statistics or r.lse.dtype == r.entropy.dtype == torch.float32
    assert_matches_oracle(r, q, k, v, **options)

keep = torch.rand(35, 49) > 0.4
keep[3] = False
check(torch.float32)
check(torch.float16, scale=torch.tensor([0.0, 0.3, -0.4, 1.0]), grouped=True)
check(torch.float32, scale=torch.tensor(0.2), attn_mask=keep)
check(torch.float16, scale=-0.3, is_causal=True, statistics=False)

for keys in ((0, 49), (-20, -3)):
    q, k, v = make_qkv(2, 4, 35, 49, 40, dtype=torch.float16)
    r = ea.attention(q, k, v, map_keys=keys, impl="triton")
    assert r.lse is None and r.entropy is None and r.map.dtype == torch.float32
    assert_matches_oracle(r, q, k, v, map_keys=(keys[0] % 49, keys[1] if keys[1] > 0 else keys[1] % 49))

q, k, v = make_qkv(1, 2, 0, 5, 16)
assert ea.attention(q, k, v, return_entropy=True, impl="triton").entropy.shape == (1, 2, 0)
q, k, v = make_qkv(1, 2, 3, 0, 16)
r = ea.attention(q, k, v, return_lse=True, return_entropy=True, impl="triton")
assert r.out.eq(0).all() and r.entropy.eq(0).all() and r.lse.eq(-float("inf")).all()

q, k, v = make_qkv(1, 2, 5, 5, 16, requires_grad=True)
r = ea.attention(q, k, v, return_entropy=True, map_keys=(1, 3), impl="triton")
found = torch.autograd.grad(r.out.sum() + r.entropy.sum() + r.map.square().sum(), (q, k, v))
r = ea.attention(q, k, v, return_entropy=True, map_keys=(1, 3), impl="reference")
expected = torch.autograd.grad(r.out.sum() + r.entropy.sum() + r.map.square().sum(), (q, k, v))
for a, b in zip(found, expected):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
print("all calls hold")
"""


def test_calls_in_the_interpreter():
    env = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", CALLS], env=env, cwd=root, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0 and "all calls hold" in result.stdout, result.stderr


@pytest.mark.parametrize(
    "target, version, refused",
    [("sm_90", (3, 7, 0), False), ("sm_100", (3, 6, 0), True), ("sm_90", (3, 7, 1), False), ("sm_80", (3, 6, 0), False),
     ("sm_90", (), False)],
)  # fmt: skip
def test_a_triton_without_the_fence_is_refused_if_a_kernel_needs_it(monkeypatch, target, version, refused):
    monkeypatch.setattr(support, "interpreting", lambda: False)
    monkeypatch.setattr(support, "has_triton", lambda: True)
    monkeypatch.setattr(support, "device_target", lambda device: target)
    monkeypatch.setattr(support, "triton_version", lambda: version)
    reasons = support._environment_reasons(torch.device("cuda", 0))
    assert len(reasons) == refused and all("use 3.7.1 or later" in reason for reason in reasons)


def test_the_version_of_triton_is_known_without_importing_it():
    assert support.triton_version() == tuple(map(int, pytest.importorskip("triton").__version__.split(".")[:3]))


@pytest.mark.parametrize("version, stages", [((3, 7, 0), 1), ((3, 7, 1), 2), ((), 2)])
def test_without_the_fence_tiles_are_loaded_through_registers(monkeypatch, version, stages):
    monkeypatch.setattr(support, "triton_version", lambda: version)
    config = forward_config("sm_90", 64, 64, torch.float16, has_mask=True)
    assert config.num_stages == 2 and not config.descriptors
    assert compile_options(config, "sm_90")["num_stages"] == stages
    assert compile_options(config, "sm_90", by_pointer=False)["num_stages"] == 2
    assert compile_options(config, "sm_80")["num_stages"] == 2
