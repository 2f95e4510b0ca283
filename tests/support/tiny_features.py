"""A tiny feature network as TorchScript, in memory or saved."""

from __future__ import annotations

from pathlib import Path

import pytest


def tiny_network(dims: int = 8, seed: int = 0):
    """(B, 3, H, W) uint8 to (B, dims): two convolutions with random weights and a mean over the image."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, dims, 3, stride=2)

        def forward(self, x):
            x = x.float() / 127.5 - 1.0
            return self.second(torch.relu(self.first(x))).mean((2, 3))

    torch.manual_seed(seed)
    return Net().eval()


def save_network(network, path: Path) -> Path:
    import torch

    torch.jit.script(network).save(str(path))
    return path


@pytest.fixture(scope="session")
def tiny_features(tmp_path_factory):
    """File of the network."""
    return save_network(tiny_network(), tmp_path_factory.mktemp("features") / "net.pt")
