"""What the training stages share: the learning rate, atomic writes of files, the progress log, and how to stop."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.common import append_rows


def rate(step: int, steps: int, peak: float, warmup: int = 100, decay: float = 0.3) -> float:
    """Warm-up, constant, then linear to zero over the last `decay` of `steps`."""
    return peak * min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (decay * steps)))


def save(path: Path, state: dict) -> None:
    """Write a new file, then replace the old one: a run that is stopped here loses nothing."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@contextmanager
def stop_requests() -> Iterator[SimpleNamespace]:
    """While the block lasts, Ctrl-C and kill -TERM only set `requested`: a step that has begun is finished.

    Half of a step, with one of two optimizers done, could not be continued.
    """
    state = SimpleNamespace(requested=False)

    def note(*_: object) -> None:
        state.requested = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Log:
    """A line on the screen and a row in a CSV file, for progress."""

    FIELDS = ("stage", "step", "loss", "pictures_per_second", "time")

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, stage: str, step: int, steps: int, loss: float, speed: float, batch: int = 32) -> None:
        left = datetime.timedelta(seconds=round((steps - step) * batch / speed))
        print(f"{stage} {step}/{steps}  loss {loss:.4f}  {speed:.1f} images/s  left {left}", flush=True)
        values = (stage, step, f"{loss:.5f}", f"{speed:.1f}", round(time.time()))
        append_rows(self.path, [dict(zip(self.FIELDS, values, strict=True))], self.FIELDS)


def load_state(folder: Path) -> dict:
    """The committed state: averaged weights in fp16 and the step; training goes on from them, optimizers from zero."""
    state = torch.load(folder / "averaged.pt")
    weights = {name: value.float() for name, value in state["weights"].items()}
    return {"step": state["step"], "net": weights, "averaged": weights}


def write_state(work: Path, folder: Path) -> int:
    """Write the newest checkpoints of `work` as a state; returns its step."""
    folder.mkdir(parents=True, exist_ok=True)
    latest = torch.load(work / "transformer.pt", map_location="cpu")
    weights = {name: value.half() for name, value in latest["averaged"].items()}
    save(folder / "averaged.pt", {"step": latest["step"], "weights": weights})
    autoencoder = torch.load(work / "autoencoder.pt", map_location="cpu")
    save(folder / "autoencoder.pt", {k: v for k, v in autoencoder.items() if k != "optimizer"})
    return latest["step"]
