"""What the training stages share: the learning rate, files written whole or not at all, and the progress log."""

from __future__ import annotations

import csv
import datetime
import time
from pathlib import Path

import torch


def rate(step: int, steps: int, peak: float, warmup: int = 100, decay: float = 0.3) -> float:
    """Warm-up, constant, then linear to zero over the last ``decay`` of ``steps``."""
    return peak * min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (decay * steps)))


def save(path: Path, state: dict) -> None:
    """Write beside the old file first: a run stopped here loses nothing."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


class Log:
    """A progress line on the screen and a row in a CSV file."""

    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            path.write_text("stage,step,loss,pictures_per_second,time\n")

    def __call__(self, stage: str, step: int, steps: int, loss: float, speed: float, batch: int = 32) -> None:
        left = datetime.timedelta(seconds=round((steps - step) * batch / speed))
        print(f"{stage} {step}/{steps}  loss {loss:.4f}  {speed:.1f} pictures/s  left {left}", flush=True)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([stage, step, f"{loss:.5f}", f"{speed:.1f}", round(time.time())])


def load_state(folder: Path) -> dict:
    """The committed state: fp16 weights of the model and of its average, and the step; optimizers start anew."""
    state = {name: torch.load(folder / f"{name}.pt") for name in ("net", "averaged")}
    return {
        "step": state["averaged"]["step"],
        **{name: {k: v.float() for k, v in part["weights"].items()} for name, part in state.items()},
    }


def write_state(work: Path, folder: Path) -> int:
    """Write the newest checkpoints of ``work`` as such a state; returns its step."""
    folder.mkdir(parents=True, exist_ok=True)
    latest = torch.load(work / "transformer.pt", map_location="cpu")
    for name in ("net", "averaged"):
        weights = {k: v.half() for k, v in latest[name].items()}
        save(folder / f"{name}.pt", {"step": latest["step"], "weights": weights})
    autoencoder = torch.load(work / "autoencoder.pt", map_location="cpu")
    save(folder / "autoencoder.pt", {k: v for k, v in autoencoder.items() if k != "optimizer"})
    return latest["step"]
