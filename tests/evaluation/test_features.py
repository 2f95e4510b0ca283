"""Features by a network in a file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from entropy_attn.evaluation.features import Features, file_hash, names_hash, open_image, real_files, resized
from tests.support.tiny_features import save_network, tiny_network


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((32, 32), (48, 20))]


def test_features_are_those_of_the_network(tiny_features, images):
    found = Features(tiny_features, side=32)(images)
    pixels = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in images])
    with torch.no_grad():
        expected = tiny_network()(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert found.dtype == np.float32 and np.allclose(found, expected.numpy(), atol=1e-6)


def test_an_exported_program(images, tmp_path):
    network, path = tiny_network(), tmp_path / "net.pt2"
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), path)
    assert np.allclose(
        Features(path, side=32)(images), Features(save_network(network, tmp_path / "n.pt"), side=32)(images)
    )


class Styled(nn.Module):
    """Like the Inception of StyleGAN's metrics: (B, D, 1, 1) with an argument."""

    def forward(self, x, return_features: bool = False):
        mean = x.float().mean((2, 3), keepdim=True)
        return mean if return_features else mean * 0


class Pair(nn.Module):
    def forward(self, x):
        return x.float().mean((2, 3)), x


class Wide(nn.Module):
    def forward(self, x):
        return x.float()


def test_other_outputs(images, tmp_path):
    means = np.stack([resized(image, 32).mean((0, 1)) for image in images])
    for network in (Styled(), Pair()):
        path = save_network(network, tmp_path / f"{type(network).__name__}.pt")
        assert np.allclose(Features(path, side=32)(images), means, atol=1e-3)
    with pytest.raises(ValueError, match=r"features: expected \(2, D\) from the network, got \(2, 3, 32, 32\)"):
        Features(save_network(Wide(), tmp_path / "wide.pt"), side=32)(images)


def test_shrinking_antialiases():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resized(Image.fromarray(stripes), 16).astype(int) - 127).max() < 20


def test_refusals(tmp_path, images):
    with pytest.raises(ValueError, match=r"features: expected a TorchScript file, or a .pt2 file .*, got .*none.pt"):
        Features(tmp_path / "none.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"features: expected a TorchScript file, .*weights.pth"):
        Features(tmp_path / "weights.pth")
    small = save_network(tiny_network(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"features: expected a network that takes \(2, 3, 8, 8\) .*fails"):
        Features(save_network(nn.Sequential(nn.Conv2d(3, 2, 3)), tmp_path / "float.pt"), side=8)(images)
    with pytest.raises(ValueError, match="side"):
        Features(small, side=4)


def test_real_images(tmp_path, images):
    (tmp_path / "a").mkdir()
    images[0].save(tmp_path / "a" / "one.PNG")
    with pytest.raises(ValueError, match="real: expected a folder with images"):
        real_files(tmp_path)
    images[1].save(tmp_path / "two.jpg")
    (tmp_path / "notes.txt").write_text("")
    files = real_files(tmp_path)
    assert [path.name for path in files] == ["one.PNG", "two.jpg"] and open_image(files[1]).size == (20, 48)
    before = names_hash(files, tmp_path)
    images[1].resize((4, 4)).save(tmp_path / "two.jpg")
    assert names_hash(files, tmp_path) != before and len(file_hash(files[0])) == 64
    (tmp_path / "two.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"real: expected an image, got .*two\.jpg"):
        open_image(files[1])
