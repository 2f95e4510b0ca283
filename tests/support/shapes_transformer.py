"""An untrained transformer of the shapes world, as its training leaves it and as it is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

WIDTH, LAYERS = 32, 1


def work_folder(folder: Path, step: int = 3) -> Path:
    """The checkpoints of a training; the weights of the network, of its average and of its output are random."""
    from benchmarks.shapes.transformer.model import transformer, vae

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net, averaged = transformer(WIDTH, LAYERS), transformer(WIDTH, LAYERS)
    for model in (net, averaged):
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    states = {"net": net.state_dict(), "averaged": averaged.state_dict()}
    torch.save({**states, "step": step, "optimizers": []}, folder / "transformer.pt")
    model = {"model": vae().state_dict(), "scaling_factor": 0.5, "step": 2, "optimizer": {}}
    torch.save(model, folder / "autoencoder.pt")
    return folder


@pytest.fixture(scope="session")
def shapes_transformer(tmp_path_factory) -> Path:
    """A folder that plain diffusers loads."""
    pytest.importorskip("diffusers")
    from benchmarks.shapes.transformer.export import export

    out = tmp_path_factory.mktemp("shapes") / "transformer"
    export(work_folder(tmp_path_factory.mktemp("work")), None, out)
    return out
