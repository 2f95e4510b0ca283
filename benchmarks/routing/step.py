"""What do the 32 attention calls of a denoising step of SD 1.5 cost the host? Counted without a GPU.

The attention layers of a UNet with SD 1.5's shapes run one after another, as the routed denoiser calls them, without
what lies between them. Projections return tensors that were made before, torch's attention is replaced by a function
that returns its query, recorders' means are not computed, and the kernels are launched on a driver that does nothing:
what remains is the work of diffusers' processors, of routing, and of launching. Calls of Python functions and of C
functions are counted; the time is that of the thread. The last row, torch's attention on a CPU for one token, is mostly
the host's part of it.

    python -m benchmarks.routing.step --csv benchmarks/results/step.csv   # rows of other commits stay
    python -m benchmarks.routing.step --rounds 20
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from unittest import mock

import diffusers
import torch
import torch.nn.functional as F
from torch import nn

import entropy_attn as ea
from benchmarks.common import add_commit, add_csv, add_json, new_parser, positive, read_rows, write_outputs
from benchmarks.kernels.stub_driver import stub_driver
from entropy_attn.bench.machine import machine
from entropy_attn.kernels.forward import measured
from entropy_attn.kernels.forward.configs import forward_config
from entropy_attn.ops import api, choice

SIZE, TEXT, HEADS, CONTEXT = 64, 77, 8, 768  # latent cells of a side, text tokens, heads, width of the text
LEVELS = ((1, 320, 5), (2, 640, 5), (4, 1280, 5), (8, 1280, 1))  # cells of a token's side, width, layers of a kind
BATCH = 2  # with and without the prompt
META = torch.device("meta")
Step = Callable[[], object]


class Given(nn.Module):
    """A layer without work: it returns what it was given when it was made."""

    def __init__(self, tensor: torch.Tensor):
        super().__init__()
        self.tensor = tensor

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.tensor


def unet() -> diffusers.UNet2DConditionModel:
    """SD 1.5's, whose forward pass is that of its attention layers alone."""
    with META:
        model = diffusers.UNet2DConditionModel(sample_size=SIZE, cross_attention_dim=CONTEXT, attention_head_dim=HEADS)
    sides = {width: SIZE // cells for cells, width, _ in LEVELS[:3]}
    calls = []
    for name, module in model.named_modules():
        if not name.endswith(("attn1", "attn2")):
            continue
        width = module.to_q.in_features
        tokens = (SIZE // 8 if name.startswith("mid") else sides[width]) ** 2
        keys = TEXT if name.endswith("attn2") else tokens
        query, key, value = (torch.empty(BATCH, n, width, dtype=torch.float16) for n in (tokens, keys, keys))
        module.to_q, module.to_k, module.to_v = Given(query), Given(key), Given(value)
        out = torch.ones(1, dtype=torch.float16)  # one number: it is divided by a factor, and all would take time
        module.to_out = nn.ModuleList([Given(out), Given(out)])
        calls.append((module, query, name.endswith("attn2")))

    def forward(self: object, sample: torch.Tensor, timestep: int, encoder_hidden_states: torch.Tensor) -> None:
        for module, tokens, is_cross in calls:
            module(tokens, encoder_hidden_states if is_cross else None)

    model.forward = types.MethodType(forward, model)
    return model


def step_of(model: nn.Module) -> Step:
    sample = torch.empty(BATCH, 4, SIZE, SIZE, dtype=torch.float16)
    text = torch.empty(BATCH, TEXT, CONTEXT, dtype=torch.float16)
    return lambda: model(sample, 1, encoder_hidden_states=text)


@contextlib.contextmanager
def kernels() -> Iterator[None]:
    """`impl="auto"` chooses as on a card on which the kernels were the faster for every shape."""

    def row(target: str, head_dim: int, *lengths: int) -> measured.Measured:
        config = forward_config(target, head_dim, head_dim, torch.float16, seqlen_k=2 ** lengths[1])
        return measured.Measured(config, 1.0, 2.0)

    shapes = [((SIZE // s) ** 2, width // HEADS) for s, width, _ in LEVELS]
    keys = [("sm_90", d, measured.length_bucket(n), measured.length_bucket(k), e)
            for n, d in shapes for k in (n, TEXT) for e in (False, True)]  # fmt: skip
    table = {key: {"cpu": row(*key[:4])} for key in keys}

    def automatic(call: object) -> object:  # as choice.automatic, without a CUDA device
        statistics_or_tensor = call.statistics or isinstance(call.scale, torch.Tensor)
        chosen = choice.TRITON if statistics_or_tensor else choice._measured_choice(call)
        return choice.SDPA if chosen is choice.TRITON and choice.TRITON.reasons(call) else chosen

    def may_choose(query: torch.Tensor) -> bool:
        return not torch.compiler.is_compiling() and bool(measured.table())

    with (
        mock.patch.object(measured, "table", lambda: table),
        mock.patch.object(choice, "automatic", automatic),
        mock.patch.object(choice, "may_choose", may_choose),
        mock.patch.object(api, "may_choose", may_choose),
    ):
        yield


def arms() -> dict[str, Callable[[], contextlib.AbstractContextManager[Step]]]:
    """{name: makes the context in which its step runs}."""

    @contextlib.contextmanager
    def routed(by_kernels: bool, **options: object) -> Iterator[Step]:
        model = unet()
        with contextlib.ExitStack() as stack:
            if by_kernels:
                stack.enter_context(kernels())
            stack.enter_context(ea.apply(model, train_size=SIZE * 8, **options))
            yield step_of(model)

    @contextlib.contextmanager
    def plain() -> Iterator[Step]:
        yield step_of(unet())

    def recorders() -> list[ea.EntropyRecorder | ea.MapRecorder]:
        parts = ("uncond", "cond")
        return [ea.EntropyRecorder(branches=parts), ea.MapRecorder([2, 5], branches=parts)]

    log_n = ea.scale.LogN()
    return {
        "diffusers": plain,
        "LogN, torch's attention": lambda: routed(False, scale=log_n),
        "LogN, kernels": lambda: routed(True, scale=log_n),
        "LogN and entropy": lambda: routed(True, scale=log_n, record=recorders()[0]),
        "LogN, entropy and maps": lambda: routed(True, scale=log_n, record=recorders()),
    }


def count(step: Step) -> tuple[int, int]:
    """Calls of Python functions and of C functions in one step."""
    events: Counter[str] = Counter()

    def see(frame: object, event: str, argument: object) -> None:
        events[event] += 1

    sys.setprofile(see)
    try:
        step()
    finally:
        sys.setprofile(None)
    return events["call"], events["c_call"]


@contextlib.contextmanager
def without_work() -> Iterator[None]:
    """What would compute on a CPU, and is queued by one call on a GPU, returns at once."""
    mean = torch.zeros(BATCH, HEADS)
    with (
        mock.patch.object(F, "scaled_dot_product_attention", lambda query, *args, **options: query),
        mock.patch.object(torch, "var_mean", lambda *args, **options: (mean, mean)),
    ):
        yield


def torchs_attention() -> Step:
    """As many calls of it, for one token of each head dim."""
    tensors = [torch.zeros(1, 1, 1, width // HEADS) for _, width, count in LEVELS for _ in range(2 * count)]
    attend = F.scaled_dot_product_attention

    def step() -> None:
        for t in tensors:
            attend(t, t, t)

    return step


def measure(name: str, step: Step, rounds: int) -> dict[str, object]:
    for _ in range(3):
        step()  # compiles
    python, c = count(step)
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        step()
        times.append(1e6 * (time.thread_time() - start))
    low, middle, high = (statistics.quantiles(times, n=10)[i] for i in (1, 4, 7))
    row: dict[str, object] = {"step": name, "attention_calls": 2 * sum(count for *_, count in LEVELS)}
    return row | {
        "python_calls": python,
        "c_calls": c,
        "p20_us": round(low),
        "p50_us": round(middle),
        "p80_us": round(high),
    }


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=positive, default=200, help="times of each (default %(default)s)")
    add_commit(parser)
    add_csv(parser)
    add_json(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with torch.no_grad():
        torchs = measure("torch's attention, one token", torchs_attention(), args.rounds)
        with stub_driver(), without_work():
            for name, arm in arms().items():
                with arm() as step:
                    rows.append(measure(name, step, args.rounds))
                print(rows[-1], flush=True)
    print(torchs)
    about = machine(torch.device("cpu"), args.commit)
    found = [row | about for row in (*rows, torchs)]
    if args.csv:  # rows of other commits stay, for comparison
        found = [row for row in read_rows(args.csv) if row["commit"] != about["commit"]] + found
    write_outputs(args, found)


if __name__ == "__main__":
    main()
