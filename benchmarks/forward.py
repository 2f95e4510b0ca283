"""Time the forward pass against torch's attention, on the card that is here.

Nothing is timed before it is right: each implementation's output and entropy are compared with float64 first. Useful
FLOPs are counted with the true head dim; runs are interleaved, the L2 cache is flushed between them.

    python benchmarks/forward.py --csv benchmarks/results/forward.csv
    python benchmarks/forward.py --head-dims 64 --lengths 1024 4096
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import entropy_attn as ea
from entropy_attn.reference import attention_reference

FIELDS = (
    "gpu", "driver", "torch", "triton", "commit", "date", "dtype", "batch", "heads", "seqlen", "head_dim",
    "implementation", "status", "max_error", "p20_ms", "p50_ms", "p80_ms", "tflops",
)  # fmt: skip
BACKENDS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
TOKENS = 32_768  # batch x length; the batch shrinks as the length grows, so that every case fills the card
HEADS = 8
ROUNDS = 3  # interleaved passes over the implementations; quantiles are over all of them
GATE_ROWS = 256  # queries compared with float64: the whole N x N in float64 would not fit


def forced(backend: SDPBackend, q, k, v):
    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v), None


def ours(entropy: bool, q, k, v):
    result = ea.attention(q, k, v, impl="triton", return_entropy=entropy)
    return result.out, result.entropy


def implementations() -> dict[str, Callable]:
    return {
        "triton": functools.partial(ours, False),
        "triton+entropy": functools.partial(ours, True),
        **{name: functools.partial(forced, backend) for name, backend in BACKENDS.items()},
    }


def gate(run: Callable, q, k, v) -> float:
    """The largest error against float64 on some rows.

    Raises:
        AssertionError: an output holds NaN, or its error is above twice that of torch's math in the same dtype.
    """
    out, entropy = run(q, k, v)
    rows = slice(0, min(GATE_ROWS, q.shape[2]))
    q, k, v = q[:1, :, rows], k[:1], v[:1]
    truth, _, true_entropy, _ = attention_reference(q, k, v)
    p = (q @ k.mT * q.shape[-1] ** -0.5).float().softmax(-1).to(v.dtype)
    error = (out[:1, :, rows].double() - truth).abs().max().item()
    budget = 2 * ((p @ v).double() - truth).abs().max().item() + torch.finfo(v.dtype).eps * truth.abs().max().item()
    assert error <= budget, f"out: error {error:.3g} above {budget:.3g}"  # NaN fails too
    if entropy is not None:
        error_h = (entropy[:1, :, rows].double() - true_entropy).abs().max().item()
        assert error_h <= 1e-3, f"entropy: error {error_h:.3g} nats above 1e-3"
    return error


def measure(runs: dict[str, Callable], q, k, v) -> dict[str, tuple[float, float, float]]:
    """(p20, p50, p80) in ms of each, over interleaved rounds."""
    from triton.testing import do_bench

    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name] += do_bench(lambda run=run: run(q, k, v), warmup=10, rep=40, return_mode="all")
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return {name: tuple(torch.tensor(t, dtype=torch.float64).quantile(levels).tolist()) for name, t in times.items()}


def case(dtype: torch.dtype, head_dim: int, seqlen: int) -> list[dict]:
    """A row for each implementation at one shape; out of memory and refusals are results too."""
    batch = max(1, TOKENS // seqlen)
    shape = (batch, HEADS, seqlen, head_dim)
    q, k, v = (torch.randn(shape, dtype=dtype, device="cuda") for _ in range(3))
    rows, good = {}, {}
    for name, run in implementations().items():
        row = {"dtype": str(dtype).removeprefix("torch."), "batch": batch, "heads": HEADS, "seqlen": seqlen,
               "head_dim": head_dim, "implementation": name}  # fmt: skip
        try:
            row |= {"max_error": f"{gate(run, q, k, v):.3g}", "status": "ok"}
            good[name] = run
        except torch.cuda.OutOfMemoryError:
            row["status"] = "out of memory"
        except AssertionError as error:
            row["status"] = f"wrong: {error}"
        except RuntimeError as error:  # torch says so where a backend does not take a shape
            row["status"] = f"refused: {str(error).splitlines()[0][:80]}"
        rows[name] = row
    flops = 4 * batch * HEADS * seqlen**2 * head_dim
    for name, (p20, p50, p80) in measure(good, q, k, v).items():
        rows[name] |= {"p20_ms": f"{p20:.4f}", "p50_ms": f"{p50:.4f}", "p80_ms": f"{p80:.4f}",
                       "tflops": f"{flops / p50 / 1e9:.1f}"}  # fmt: skip
    return list(rows.values())


def machine(commit: str | None = None) -> dict[str, str]:
    """What every row says about where it was measured."""
    import triton

    def output(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
        return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"

    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit or output("git", "rev-parse", "--short", "HEAD"),
        "date": datetime.date.today().isoformat(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[40, 64, 80, 128, 160])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float16"], default=["bfloat16"])
    parser.add_argument("--csv", type=Path, help="write the rows here as they come")
    parser.add_argument("--commit", help="the commit that the rows name, where the folder is no git checkout")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("forward.py: no GPU is visible to torch; these times are of a GPU", file=sys.stderr)
        return 2
    about, wrong = machine(args.commit), 0
    file = args.csv.open("w", newline="") if args.csv else None
    writer = csv.DictWriter(file, FIELDS) if file else None
    if writer:
        writer.writeheader()
    for name in args.dtypes:
        for head_dim in args.head_dims:
            for seqlen in args.lengths:
                for row in case(getattr(torch, name), head_dim, seqlen):
                    wrong += row["status"].startswith("wrong")
                    print(f"{name} d{head_dim} N{seqlen} {row['implementation']:<15} {row['status']:<12} "
                          f"{row.get('p50_ms', '-'):>9} ms {row.get('tflops', '-'):>7} TFLOP/s")  # fmt: skip
                    if writer:
                        writer.writerow(about | row)
                        file.flush()
    if file:
        file.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
