"""What a kernel that `kernels` has loaded computes, in a process of its own.

    python -I -S child.py TASK KERNEL FOLDER PATH...

`-S` leaves out site-packages, and with it all that is installed; PATHs are folders of packages that a task may import.
A task reads its calls from FOLDER and writes its answers there. The parent compares them: the oracle is in the package.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TASK, KERNEL, FOLDER, *PATHS = sys.argv[1], *map(Path, sys.argv[2:])
sys.path.extend(map(str, PATHS))

if TASK != "beside":
    sys.modules["entropy_attn"] = None  # importing it raises, also where it lies beside torch

import torch  # noqa: E402

from kernels import get_local_kernel  # noqa: E402


def calls():
    return torch.load(FOLDER / "calls.pt")


def answer(attention, made):
    """Results and gradients of calls with every statistic."""
    answers = []
    for tensors, options, cotangents in made:
        tensors = [t.requires_grad_() for t in tensors]
        query, key, value, *scale = tensors
        given = {"scale": scale[0]} if scale else {}
        results = attention(query, key, value, return_lse=True, return_entropy=True, **given, **options)[:4]
        answers.append((tuple(t.detach() for t in results), torch.autograd.grad(results, tensors, cotangents)))
    return answers


def operators() -> list[str]:
    """Those of the package and of kernels of it."""
    ours = ("entropy_attn::attention", "_entropy_attn_")
    return sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith(ours))


def alone() -> dict:
    """Every call; and what loading the kernel has done to the process."""
    kernel = get_local_kernel(KERNEL)
    answers = answer(kernel.attention, calls())
    files = {getattr(module, "__file__", None) for module in sys.modules.values()} - {None}
    installed = [path.resolve() for path in PATHS]  # perhaps a virtual environment inside of the repository
    return {
        "id": kernel.__name__,
        "public": sorted(kernel.__all__),
        "answers": answers,
        "operators": operators(),
        "from the repository": [
            str(file)
            for file in map(Path, sorted(files))
            if file.is_relative_to(REPOSITORY) and not any(file.resolve().is_relative_to(path) for path in installed)
        ],
    }


def beside() -> dict:
    """Every call by the kernel, and by the installed package in the same process."""
    import entropy_attn

    first = answer(entropy_attn.attention, calls())
    kernel = get_local_kernel(KERNEL)
    answers = [first, answer(kernel.attention, calls()), answer(entropy_attn.attention, calls())]
    return {"id": kernel.__name__, "answers": answers, "operators": operators()}


def twice() -> dict:
    """Every call by two kernels."""
    kernels = [get_local_kernel(path) for path in (KERNEL, FOLDER / "other")]
    return {
        "ids": [kernel.__name__ for kernel in kernels],
        "answers": [answer(kernel.attention, calls()) for kernel in kernels],
    }


def compiled() -> dict:
    """One call as part of a graph without breaks, and without one."""
    kernel = get_local_kernel(KERNEL)

    def entropy(query, key, value):
        return kernel.attention(query * 1.5, key, value, return_entropy=True, impl="triton").entropy.sum()

    q, k, v = calls()[0][0][:3]
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
        made.batch, made.heads, made.tokens, made.text_tokens = 1, 1, 40, min(made.text_tokens, 24)
        timings, _ = run_benchmark_class(made, 1, 0, str(KERNEL), True, "local")
        verified[made.__name__] = shape, {name: timing.verified for name, timing in timings.items()}
    return verified


if __name__ == "__main__":
    done = {task.__name__: task for task in (alone, beside, twice, compiled, card, benchmark)}[TASK]()
    torch.save(done, FOLDER / "answers.pt")
