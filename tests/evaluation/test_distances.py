"""FID, KID, precision and recall of small features against the formulas in numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from entropy_attn.evaluation import distances
from entropy_attn.evaluation.distances import fid, kid, precision_recall


@pytest.fixture(scope="module")
def features():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(6, 6))
    real = random.normal(size=(70, 6)) @ mixing
    near = (random.normal(size=(50, 6)) @ mixing + 0.1).astype(np.float32)
    far = (random.normal(size=(50, 6)) * 2 + 1.0).astype(np.float32)
    return real.astype(np.float32), near, far


def by_hand_kid(x, y):
    """The unbiased estimate with explicit loops over pairs."""
    x, y = x.astype(np.float64), y.astype(np.float64)

    def k(a, b):
        return (a @ b / x.shape[1] + 1) ** 3

    xx = np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j])
    return xx + yy - 2 * np.mean([k(a, b) for a in x for b in y])


def test_fid_is_the_formula(features):
    pytest.importorskip("torchmetrics")
    real, near, far = (x.astype(np.float64) for x in features)
    for generated in (near, far):
        a, b = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
        root = linalg.sqrtm(a @ b).real
        expected = ((real.mean(0) - generated.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
        assert fid(real, generated) == pytest.approx(expected, rel=1e-9)


def test_kid_is_the_formula(features, monkeypatch):
    real, near, far = features
    expected = {"near": by_hand_kid(real, near), "far": by_hand_kid(real, far)}
    for chunk in (7, 1024):
        monkeypatch.setattr(distances, "CHUNK", chunk)
        found = kid(real, {"near": near, "far": far}, range(50), "near")
        assert {name: value.mean for name, (value, _) in found.items()} == pytest.approx(expected)
        assert found["near"][1] is None and found["far"][1].mean == pytest.approx(expected["far"] - expected["near"])
    torchmetrics = pytest.importorskip("torchmetrics.image.kid")
    torch = pytest.importorskip("torch")
    equal = real[:50]  # theirs is for equal numbers of images alone
    theirs = torchmetrics.poly_mmd(torch.from_numpy(equal).double(), torch.from_numpy(near).double())
    assert kid(equal, {"near": near}, range(50), "near")["near"][0].mean == pytest.approx(float(theirs))


def test_kid_intervals_cover_as_often_as_they_say():
    """40 sets from one distribution: with 95 % intervals, the share that covers 0 is not far from that."""
    random = np.random.default_rng(3)
    real = random.normal(size=(2000, 4))
    covered = 0
    for _ in range(40):
        (value, _) = kid(real, {"a": random.normal(size=(40, 4))}, range(40), "a", resamples=300)["a"]
        covered += value.low <= 0 <= value.high
    assert 31 <= covered <= 40


def test_paired_differences_are_narrower_than_the_values(features):
    real, near, _ = features
    slightly = near + 0.01 * np.random.default_rng(1).normal(size=near.shape).astype(np.float32)
    found = kid(real, {"a": near, "b": slightly}, range(50), "a")
    difference, value = found["b"][1], found["b"][0]
    assert difference.high - difference.low < 0.2 * (value.high - value.low)


def test_images_of_one_prompt_are_one_group(features):
    """Copies of each image are left out of the pairs, and add nothing to the evidence."""
    real, near, _ = features
    single = kid(real, {"a": near}, range(50), "a")["a"][0]
    copied = kid(real, {"a": np.repeat(near, 3, axis=0)}, np.repeat(range(50), 3), "a")["a"][0]
    assert copied == pytest.approx(single, abs=1e-9)


def test_precision_and_recall(capsys):
    pytest.importorskip("prdc")
    random = np.random.default_rng(0)
    real = random.normal(size=(40, 3)).astype(np.float32)
    apart = real + 100
    assert precision_recall(real, apart)["precision"] == precision_recall(real, apart)["recall"] == 0
    half = np.concatenate([real[:20] + 1e-4, apart[:20]])
    found = precision_recall(real, half, nearest=3)

    def radius(x):
        return np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), axis=1)[:, 3]

    distance = np.linalg.norm(real[:, None] - half[None], axis=-1)
    assert found["precision"] == pytest.approx((distance < radius(real)[:, None]).any(0).mean()) == 0.5
    assert found["recall"] == pytest.approx((distance < radius(half)[None]).any(1).mean())
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="images: expected more than 5 of each kind"):
        precision_recall(real[:5], half)


def test_too_few_images_for_an_interval(features):
    with pytest.raises(ValueError, match="groups: expected at least three, and two real images, got '2, 70'"):
        kid(features[0], {"a": features[1][:4]}, [0, 0, 1, 1], "a")


def test_what_is_not_installed_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "prdc", None)
    with pytest.raises(
        ImportError, match=r"real: expected prdc to be installed: pip install 'entropy_attn\[evaluate\]'"
    ):
        distances.check_installed()
