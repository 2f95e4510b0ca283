"""FlashAttention-4's forward kernel for Hopper, compiled without a GPU, with entropy added for comparison.

Needs the extra `peers`. The package documents compilation without a GPU (`flash_attn/cute/interface.py`).
"""

from __future__ import annotations

import atexit
import functools
import math
import operator
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

PACKAGES = ("flash-attn-4", "nvidia-cutlass-dsl")  # of which the rows name the versions
SETTINGS = {
    "FLASH_ATTENTION_ARCH": "sm_90",
    "CUTE_DSL_ARCH": "sm_90a",
    "FLASH_ATTENTION_NUM_SMS": "132",
    "CUTE_DSL_KEEP": "cubin",
}
SEQLEN, HEADS = 4096, 8


@dataclass(frozen=True)
class Compiled:
    """A cubin with one kernel, and what its launch adds."""

    cubin: bytes
    block_m: int
    block_n: int
    stages: int
    warps: int
    computing: int  # of the warps: the others load
    width: int  # the head dim of the products: the padded one
    shared: int  # bytes, dynamic


def compile_forward(head_dim: int, entropy: bool, dtype: torch.dtype = torch.float16) -> Compiled:
    """Compile the kernel that FlashAttention-4 chooses for long sequences without a mask on an H100.

    Args:
        head_dim: of queries, keys and values.
        entropy: accumulate the entropy of each row as our kernel does; it is written in place of the logsumexp.
            The loop is what a user would get from a change of FlashAttention-4. The kernel has never run, and is wrong
            with masks.
        dtype: of queries, keys and values.

    Raises:
        ModuleNotFoundError: the extra `peers` is not installed.
        RuntimeError: the package was imported before, or did not compile exactly one kernel.
    """
    interface, forward, folder = _package()
    made: list[Any] = []

    class Seen(forward.FlashAttentionForwardSm90):
        """Remembers what the launch configuration would say."""

        def _get_shared_storage_cls(self) -> Any:
            storage = super()._get_shared_storage_cls()
            made.append((self, storage.size_in_bytes()))
            return storage

    plain = interface.FlashAttentionForwardSm90, forward.Softmax
    interface.FlashAttentionForwardSm90 = Seen
    forward.Softmax = _entropy_softmax() if entropy else plain[1]
    for old in folder.iterdir():
        old.unlink()
    interface._flash_attn_fwd.compile_cache.clear()
    try:
        with FakeTensorMode():
            query, key, value = (torch.empty(1, SEQLEN, HEADS, head_dim, device="cuda", dtype=dtype) for _ in range(3))
            interface._flash_attn_fwd(query, key, value, return_lse=True)
    finally:
        interface.FlashAttentionForwardSm90, forward.Softmax = plain
        interface._flash_attn_fwd.compile_cache.clear()
    cubins = sorted(folder.glob("*.cubin"))
    if len(cubins) != 1 or len(made) != 1:
        raise RuntimeError(f"flash-attn-4: expected one kernel, got {len(cubins)} in {len(made)} compilations")
    kernel, shared = made[0]
    return Compiled(
        cubin=cubins[0].read_bytes(),
        block_m=kernel.tile_m,
        block_n=kernel.tile_n,
        stages=kernel.num_stages,
        warps=kernel.num_threads // 32,
        computing=kernel.num_mma_threads // 32,
        width=kernel.tile_hdim,
        shared=shared,
    )


@functools.cache
def _package() -> tuple[ModuleType, ModuleType, Path]:
    """Import the package with its settings; it reads them once. The folder is where it leaves the machine code."""
    if "cutlass" in sys.modules:
        raise RuntimeError("flash4: expected a process that has not imported cutlass, which reads its settings once")
    folder = tempfile.TemporaryDirectory(prefix="flash4-")
    atexit.register(folder.cleanup)
    os.environ.update(SETTINGS, CUTE_DSL_DUMP_DIR=folder.name)
    try:
        from flash_attn.cute import flash_fwd_sm90, interface
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "FlashAttention-4 is not installed: pip install '.[peers]'", name=error.name
        ) from error
    return interface, flash_fwd_sm90, Path(folder.name)


@functools.cache
def _entropy_softmax() -> type:
    """The package's online softmax with a third statistic: the sum of p·x, x being the exponent of p in base 2."""
    import cutlass
    from cutlass import Float32, cute
    from flash_attn.cute.softmax import Softmax
    from flash_attn.cute.utils import warp_reduce
    from quack import layout_utils

    @dataclass
    class EntropySoftmax(Softmax):
        row_entropy: cute.Tensor | None = None

        @staticmethod
        def create(scale_log2: Any, num_rows: int, **options: Any) -> EntropySoftmax:
            base = Softmax.create(scale_log2, num_rows, **options)
            entropy = cute.make_rmem_tensor(num_rows, Float32)
            return EntropySoftmax(
                base.scale_log2, num_rows, base.row_max, base.row_sum, base.arch, base.softmax_scale, entropy
            )

        def reset(self) -> None:
            Softmax.reset(self)
            self.row_entropy.fill(0.0)

        def online_softmax(self, acc_S: Any, is_first: bool = False, check_inf: bool = True) -> Any:
            rows = layout_utils.reshape_acc_to_mn(acc_S)
            numbers = range(self.num_rows)
            scores = [rows[r, None].load() for r in numbers]
            before = [(self.row_max[r], self.row_sum[r], self.row_entropy[r]) for r in numbers]
            row_scale = Softmax.online_softmax(self, acc_S, is_first=is_first, check_inf=check_inf)
            for r in numbers:
                highest = self.row_max[r]
                if check_inf:  # as the package does, so that the compiler computes the exponent once
                    highest = cutlass.select_(highest == -Float32.inf, Float32(0.0), highest)
                exponent = scores[r] * self.scale_log2 - highest * self.scale_log2
                start = Float32(0.0)
                if not is_first:
                    old_max, old_sum, old = before[r]
                    start = row_scale[r] * (old + (old_max - highest) * self.scale_log2 * old_sum)
                products = rows[r, None].load() * exponent
                self.row_entropy[r] = products.reduce(cute.ReductionOp.ADD, start, 0)
            return row_scale

        def finalize(self, final_scale: float = 1.0, sink_val: Any = None) -> Any:
            """Entropy in nats, where the package has the logsumexp."""
            self.row_entropy.store(warp_reduce(self.row_entropy.load(), operator.add, width=4))
            row_scale = Softmax.finalize(self, final_scale, sink_val)  # 1 / row_sum
            for r in range(self.num_rows):
                shift = self.row_max[r] * self.scale_log2 + self.row_entropy[r] * row_scale[r]
                self.row_sum[r] = self.row_sum[r] - math.log(2.0) * shift
            return row_scale

    return EntropySoftmax
