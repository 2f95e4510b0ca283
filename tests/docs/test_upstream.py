"""The proposals to other projects: their patches apply and do what the texts say, and their reproducers run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

ROOT = Path(__file__).parents[2]
UPSTREAM = ROOT / "docs" / "upstream"
PATCHES = sorted(UPSTREAM.glob("*.patch"))
PINNED = next(
    line.split("==")[1]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.startswith("diffusers==")
)
of_the_pinned_release = [
    pytest.mark.skipif(diffusers.__version__ != PINNED, reason=f"the patches are for diffusers {PINNED}"),
    pytest.mark.skipif(shutil.which("git") is None, reason="needs git to apply a patch"),
]


def patched(patch: Path, folder: Path) -> Path:
    """A copy of the installed diffusers in this folder, patched; unpatched files are links."""
    installed = Path(diffusers.__file__).parent
    files = re.findall(r"^\+\+\+ b/src/diffusers/(\S+)$", patch.read_text(), re.MULTILINE)
    assert files
    opened = {Path(name).parent for name in files}
    opened |= {above for each in opened for above in each.parents}
    for inner in sorted(opened, key=lambda each: len(each.parts)):
        made = folder / "diffusers" / inner
        made.mkdir(exist_ok=True, parents=True)
        for item in (installed / inner).iterdir():
            name = (inner / item.name).as_posix()
            if Path(name) in opened or item.name == "__pycache__":
                continue
            if name in files:
                shutil.copy(item, made / item.name)
            else:
                (made / item.name).symlink_to(item)
    subprocess.run(["git", "apply", "-p2", str(patch)], cwd=folder, check=True)
    return folder


def run(code: str, *path: Path) -> str:
    """The output of a program that finds packages in these folders first."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_of(name: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (UPSTREAM / name).read_text(encoding="utf-8"), re.DOTALL)
    return code


BACKEND = """
import torch
from diffusers import unregister_attention_backend
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from tests.support.tiny_denoisers import CASES

def denoise(name, denoiser):
    return denoiser(**CASES[name].call(*CASES[name].sizes[0]), return_dict=False)[0]

model = CASES["flux"].make()
with torch.no_grad():
    expected, calls = denoise("flux", model), []
    ours = _AttentionBackendRegistry._backends["entropy_attn"]
    def counted(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False,
                return_lse=False, _parallel_config=None):
        calls.append(query.shape)
        return ours(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse, _parallel_config)
    _AttentionBackendRegistry._backends["entropy_attn"] = counted
    model.set_attention_backend("entropy_attn")
    torch.testing.assert_close(denoise("flux", model), expected, rtol=1e-4, atol=1e-4)
    layers = len(calls)
    assert layers > 1
    model.set_attention_backend("native")
    assert torch.equal(denoise("flux", model), expected) and len(calls) == layers
    model.reset_attention_backend()
    with attention_backend("entropy_attn"):
        denoise("flux", model)
    assert len(calls) == 2 * layers
    model.set_attention_backend("_native_math")
    denoise("flux", model)
    assert len(calls) == 2 * layers

def refused(call, what):
    try:
        call()
    except ValueError as error:
        assert what in str(error), error
    else:
        raise AssertionError(what)

refused(lambda: register_attention_backend("entropy_attn", attention), "another backend")
refused(lambda: register_attention_backend("Native", attention), "lower case")
refused(lambda: register_attention_backend("mine", lambda query, key, value: value), "attn_mask")
refused(lambda: model.set_attention_backend("absent"), "entropy_attn")
model.set_attention_backend("entropy_attn")
unregister_attention_backend("entropy_attn")
assert _AttentionBackendRegistry.get_active_backend()[0].value == "native"
refused(lambda: model.set_attention_backend("entropy_attn"), "must be one of")
refused(lambda: denoise("flux", model), "must be one of")
refused(lambda: unregister_attention_backend("native"), "not the name")
print("done")
"""


@pytest.mark.parametrize("patch", [pytest.param(each, marks=of_the_pinned_release, id=each.stem) for each in PATCHES])
def test_the_patches_apply_to_the_pinned_release(patch, tmp_path):
    changed = [path for path in patched(patch, tmp_path).rglob("*.py") if not path.is_symlink()]
    assert changed
    for path in changed:
        compile(path.read_text(), path.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("diffusers-attention-backend", marks=of_the_pinned_release)])
def test_with_the_patch_the_example_is_a_backend(name, tmp_path):
    folder = patched(UPSTREAM / f"{name}.patch", tmp_path)
    assert run(code_of(f"{name}.md") + BACKEND, folder).strip() == "done"


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("diffusers-modular-pooled", marks=of_the_pinned_release)])
def test_with_the_patch_each_image_has_its_prompts_embedding(name, tmp_path):
    folder = patched(UPSTREAM / f"{name}.patch", tmp_path)
    assert run(code_of(f"{name}.md"), folder) == "[1.0, 1.0, 2.0, 2.0] [1.0, 1.0, 2.0, 2.0]\n"


def test_without_the_patch_there_is_no_way():
    """When this fails, diffusers has opened its backends: offer one, and say so in docs/backends.md."""
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    with pytest.raises(ValueError, match="entropy_attn"):
        AttentionBackendName("entropy_attn")
    with pytest.raises(ValueError, match="entropy_attn"), attention_backend("entropy_attn"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        pytest.param("diffusers-backend-leak.md", "_native_math\n_native_math\n", marks=of_the_pinned_release),
        pytest.param(
            "diffusers-modular-pooled.md", "[1.0, 1.0, 2.0, 2.0] [1.0, 2.0, 1.0, 2.0]\n", marks=of_the_pinned_release
        ),
        ("transformers-attention-interface.md", "False\n"),
    ],
)
def test_reproducers_in_texts(name, printed):
    assert run(code_of(name)) == printed


def test_the_kernel_of_the_rings_reproducer_is_exact():
    """So what it finds is the ring's. The ring itself needs three processes."""
    spec = util.spec_from_file_location("diffusers_ring", UPSTREAM / "diffusers_ring.py")
    ring = util.module_from_spec(spec)
    spec.loader.exec_module(ring)
    q, k, v, g = (torch.randn(1, 7, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(4))
    out, lse = ring.attention(q, k, v)
    expected = torch.autograd.grad(out, (q, k, v), g)
    saved = SimpleNamespace(query=q, key=k, value=v, out=out, lse=lse)
    torch.testing.assert_close(ring.backward_op(None, g, **vars(saved)), expected)
    halves = [ring.attention(q, k[:, part], v[:, part]) for part in (slice(3), slice(3, None))]
    weights = torch.stack([each[1] for each in halves]).softmax(0).unsqueeze(-1)
    torch.testing.assert_close((weights * torch.stack([each[0] for each in halves])).sum(0), out)


def test_every_file_is_in_the_index():
    index = (UPSTREAM / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in UPSTREAM.iterdir() if path.name not in ("README.md", "__pycache__")}
    assert files == set(re.findall(r"\]\(([^)]+)\)", index))
