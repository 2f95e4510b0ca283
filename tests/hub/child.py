"""What a kernel that `kernels` has loaded computes, in a process of its own.

    python -I -S child.py TASK KERNEL FOLDER PATH...

`-S` leaves out site-packages and with it everything installed; PATHs are the folders of the packages that a task may import.
A task reads its calls from FOLDER and writes its answers there: the oracle is in the package, so other processes compare.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TASK, KERNEL, FOLDER = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent] + sys.argv[4:]

if TASK != "beside":
    sys.modules["entropy_attn"] = None  # importing it raises, also where it lies beside torch

import torch
from kernels import get_local_kernel


def answer(attention, calls):
    """Results and gradients of calls with every statistic, without the class of the results, which has another name."""
    answers = []
    for tensors, options, cotangents in calls:
        tensors = [t.requires_grad_() for t in tensors]
        query, key, value, *scale = tensors
        given = {"scale": scale[0]} if scale else {}
        results = attention(query, key, value, return_lse=True, return_entropy=True, **given, **options)
        answers.append((tuple(results), torch.autograd.grad(results, tensors, cotangents)))
    return answers


def operators() -> set[str]:
    return set(torch._C._dispatch_get_all_op_names())


def alone() -> dict:
    """Every call; and what loading the kernel has done to the process."""
    before = operators()
    kernel = get_local_kernel(KERNEL)
    answers = answer(kernel.attention, torch.load(FOLDER / "calls.pt"))
    files = [getattr(module, "__file__", None) for module in sys.modules.values()]
    found = {Path(file).resolve() for file in files if file}
    return {
        "id": kernel.__name__,
        "public": sorted(kernel.__all__),
        "answers": answers,
        "operators": sorted(operators() - before),
        "from the repository": sorted(
            str(file) for file in found if file.is_relative_to(REPOSITORY) and file.suffix == ".py"
        ),
    }


def beside() -> dict:
    """Every call by the kernel, and by the installed package in the same process."""
    import entropy_attn

    first = answer(entropy_attn.attention, torch.load(FOLDER / "calls.pt"))
    kernel = get_local_kernel(KERNEL)
    answers = answer(kernel.attention, torch.load(FOLDER / "calls.pt"))
    again = answer(entropy_attn.attention, torch.load(FOLDER / "calls.pt"))
    namespaces = [entropy_attn.ops.operator._attention._namespace, sys.modules[f"{kernel.__name__}.ops.operator"]._attention._namespace]
    return {"id": kernel.__name__, "answers": [first, answers, again], "namespaces": namespaces}


def twice() -> dict:
    """Every call by two kernels."""
    kernels = [get_local_kernel(path) for path in (KERNEL, FOLDER / "other")]
    calls = [torch.load(FOLDER / "calls.pt") for _ in kernels]
    return {
        "ids": [kernel.__name__ for kernel in kernels],
        "answers": [answer(kernel.attention, made) for kernel, made in zip(kernels, calls, strict=True)],
    }


def compiled() -> dict:
    """One call as part of a graph without breaks, and without one."""
    kernel = get_local_kernel(KERNEL)

    def entropy(query, key, value):
        return kernel.attention(query * 1.5, key, value, return_entropy=True, impl="triton").entropy.sum()

    q, k, v = torch.load(FOLDER / "calls.pt")[0][0][:3]
    graph = torch.compile(entropy, backend="aot_eager", fullgraph=True)
    results = []
    for function in (entropy, graph):
        inputs = [t.clone().requires_grad_() for t in (q, k, v)]
        value = function(*inputs)
        results.append((value.detach(), *torch.autograd.grad(value, inputs[:2])))
    return {"answers": results}


def card() -> dict:
    """The example of the card, with the kernel from its folder."""
    text = (KERNEL / "build" / "CARD.md").read_text(encoding="utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    import kernels

    kernels.get_kernel = lambda repo_id, version, trust_remote_code: get_local_kernel(KERNEL)
    exec(example, names)
    return {"shapes": [tuple(t.shape) for t in (names["result"].out, names["result"].entropy, names["result"].map)]}


def benchmark() -> dict:
    """Every workload of the benchmark script, made small."""
    from kernels.cli.benchmark import discover_benchmark_classes, run_benchmark_class

    verified = {}
    for made in discover_benchmark_classes(KERNEL / "benchmarks" / "benchmark.py", KERNEL):
        shape = (made.batch, made.heads, made.tokens, made.head_dim)
        made.batch, made.heads, made.tokens, made.text_tokens = 1, 2, 70, min(made.text_tokens, 40)
        timings, _ = run_benchmark_class(made, 1, 0, str(KERNEL), True, "local")
        verified[made.__name__] = shape, {name: timing.verified for name, timing in timings.items()}
    return verified


if __name__ == "__main__":
    done = {task.__name__: task for task in (alone, beside, twice, compiled, card, benchmark)}[TASK]()
    torch.save(done, FOLDER / "answers.pt")
