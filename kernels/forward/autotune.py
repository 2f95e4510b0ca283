"""Opt-in autotuning: measure the candidates once, remember the fastest on disk.

The key holds what changes the choice: device, Triton version, head dims, dtype, options, and the sizes in buckets of
powers of two, so that a new resolution seldom tunes again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from ..common.arguments import describable
from ..common.stopwatch import Stopwatch
from ..common.support import interpreting
from .configs import ForwardConfig, forward_candidates
from .launch import ForwardCall
from .measured import length_bucket

FLUSH_BYTES = 256 * 2**20  # beyond twice the cache of any card so far
WARMUPS, MOST_RUNS, MEASURED_MS = 3, 100, 50.0
Timer = Callable[[Callable[[], object]], float]
_remembered: dict[tuple[Path, str], ForwardConfig] = {}


def tuned_config(call: ForwardCall, timer: Timer | None = None, folder: Path | None = None) -> ForwardConfig:
    """The fastest candidate for a call: from this process, else from the disk, else by measuring them all.

    `timer` runs the function it is given and returns its time; the default is the median on a GPU, without the
    host's part. Each candidate writes the whole result, so measuring leaves the call's outputs correct.
    """
    path = (folder or cache_folder()) / "forward.json"
    key = tuning_key(call)
    if (path, key) not in _remembered:
        stored = _read(path).get(key)
        if stored is None:
            best = _fastest(call, timer or _default_timer())
            _write(path, key, best)
        else:
            best = ForwardConfig(**stored)
        _remembered[path, key] = best
    return _remembered[path, key]


def tuning_key(call: ForwardCall) -> str:
    """A readable line, the key of the file on disk."""
    import triton

    query = call.call.query
    batch, num_heads, seqlen_q, _ = query.shape
    options = call.options()
    seqlen_k = options.pop("seqlen_k")
    device = torch.cuda.get_device_name(query.device) if query.device.type == "cuda" else "cpu"
    parts = {
        "device": device,
        "triton": triton.__version__,
        **options,
        "query_by_descriptor": describable(query),  # some schedules fetch it so
        "is_causal": call.call.is_causal,
        "lse": call.lse is not None,
        "entropy": call.entropy is not None,
        "seqlen_q": f"2^{length_bucket(seqlen_q)}",
        "seqlen_k": f"2^{length_bucket(seqlen_k)}",
        "whole_blocks": seqlen_k % 128 == 0,
        "heads": f"2^{length_bucket(batch * num_heads)}",
    }
    return " ".join(f"{name}={value}" for name, value in parts.items())


def cache_folder() -> Path:
    """Where the XDG convention puts what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entropy-attn"


def _fastest(call: ForwardCall, timer: Timer) -> ForwardConfig:
    """Passes over what a device cannot hold. Any other error, such as an illegal access, is raised as it is."""
    from triton.runtime.errors import OutOfResources, PTXASError

    times: dict[ForwardConfig, float] = {}
    failures: list[str] = []
    for config in forward_candidates(**call.options()):
        refusal = call.refusal(config)  # the candidates are those of an average call with these options
        if refusal is not None:
            failures.append(refusal)
            continue
        try:
            times[config] = timer(functools.partial(call.launch, config))
        except (OutOfResources, PTXASError) as error:  # more shared memory or registers than the device has
            failures.append(f"{config}: {error!r}")
    if not times:
        raise RuntimeError("no candidate ran: " + "; ".join(failures))
    return min(times, key=times.__getitem__)


def _default_timer() -> Timer:
    return _wall_clock if interpreting() else _gpu_clock


def _gpu_clock(run: Callable[[], object]) -> float:
    """Milliseconds on the current device with a cold level-2 cache, the median of at most MOST_RUNS."""
    cache = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    run()  # compiles
    watch = Stopwatch(run, before=cache.zero_)
    once = min(watch.time().gpu for _ in range(WARMUPS))
    count = max(WARMUPS, min(MOST_RUNS, round(MEASURED_MS / max(once, 1e-3))))
    return statistics.median(watch.time().gpu for _ in range(count))


def _wall_clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _read(path: Path) -> dict[str, dict]:
    """The stored choices; none where the file is missing, and none, with a warning, where it is not readable."""
    try:
        stored = json.loads(path.read_text())
        fields = {field.name for field in dataclasses.fields(ForwardConfig)}
        return {key: config for key, config in stored.items() if set(config) == fields}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        warnings.warn(f"the autotuning cache {path} is not readable and will be written anew: {error}", stacklevel=2)
        return {}


def _write(path: Path, key: str, config: ForwardConfig) -> None:
    """Replaces the file in one step: a process reading it meanwhile sees the old or the new one, never half of one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({**_read(path), key: dataclasses.asdict(config)}, indent=1, sort_keys=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as f:
            f.write(content)
        os.replace(f.name, path)
    except OSError as error:
        warnings.warn(f"the autotuning result is kept for this process only: {path}: {error}", stacklevel=2)
