"""The interface of `Recorder` for subclasses outside of the package."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from entropy_attn.integrations.diffusers import apply
from entropy_attn.recorders import Recorder
from entropy_attn.scale import Fixed
from tests.support.tiny_models import denoise


class MaxEntropy(Recorder):
    """Has only the methods that CONTRIBUTING.md requires."""

    def __init__(self):
        super().__init__(None)
        self.highest: dict[str, torch.Tensor] = {}

    def wants(self, info, latent_size):
        return "entropy" if info.kind == "self" else None

    def record(self, info, scale, measured, branches, latent_size):
        self.highest[info.layer] = measured.amax()


class Ordered(MaxEntropy):
    """Keeps the order of its calls."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def observe(self, info, latent_size):
        self.calls.append(("observe", info.layer))

    def wants(self, info, latent_size):
        self.calls.append(("wants", info.layer))
        return super().wants(info, latent_size)

    def record(self, info, scale, measured, branches, latent_size):
        self.calls.append(("record", info.layer))
        super().record(info, scale, measured, branches, latent_size)


def test_a_subclass_needs_only_wants_and_record(unet):
    recorder = MaxEntropy()
    with apply(unet, scale=Fixed(), record=recorder) as handle:
        denoise(unet)
    assert set(recorder.highest) == {layer for layer in handle.layers if layer.endswith("attn1")}
    assert all(value > 0 for value in recorder.highest.values())


def test_observe_is_called_before_wants(unet):
    recorder = Ordered()
    with apply(unet, scale=Fixed(), record=recorder) as handle:
        denoise(unet)
    expected = []
    for _, layer in (call for call in recorder.calls if call[0] == "observe"):
        expected += [("observe", layer), ("wants", layer)]
        if layer.endswith("attn1"):
            expected.append(("record", layer))
    assert recorder.calls == expected and {layer for _, layer in expected} == set(handle.layers)


def test_a_missing_method_is_an_error(unet):
    with apply(unet, scale=Fixed(), record=Recorder(None)), pytest.raises(NotImplementedError):
        denoise(unet)


def test_importing_recorders_needs_no_optional_package():
    optional = {"triton", "diffusers", "transformers", "pandas", "PIL"}
    code = f"import entropy_attn.recorders, sys; print({optional!r} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
