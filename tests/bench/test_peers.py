"""The implementations of other packages, without those packages: what they compute, and what they say when missing."""

from __future__ import annotations

import contextlib
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from entropy_attn.bench.cases import Case, run
from entropy_attn.bench.gate import Gate
from entropy_attn.bench.implementations import activated, flash_attention, from_outputs, torch_backends
from entropy_attn.bench.implementations.contract import Ask, Implementation, not_installed
from entropy_attn.bench.implementations.registry import IMPLEMENTATIONS, contenders
from entropy_attn.bench.implementations.softmax import materialized
from entropy_attn.bench.measure import measure
from entropy_attn.bench.timing import CpuClock, interleaved
from entropy_attn.bench.workloads import Workload

CPU = torch.device("cpu")
JOINT = Workload("tiny", "", "joint", 2, 3, 300, 333, 16, 2, (40, 117))  # rows in two chunks of 256
OPTIONAL = {  # what to install is in the reason
    "flash-attn-2": "flash_attn.flash_attn_interface is not installed: pip install flash-attn",
    "flash-attn-3": "flash_attn_interface is not installed: build hopper/",
    "flash-attn-4": "flash_attn.cute is not installed: pip install flash-attn-4",
    "vk-flash-attn-4": "flash_attn.cute is not installed: pip install flash-attn-4",
    "cat-flash-attn-4": "flash_attn.cute is not installed: pip install flash-attn-4",
    "flex-flash": "flash_attn.cute is not installed: pip install flash-attn-4",
    "sdpa-fa3": "flash_attn_interface is not installed: build hopper/",
    "sdpa-fa4": "flash_attn.cute is not installed: pip install flash-attn-4",
    "sage": "sageattention is not installed: pip install sageattention",
    "xformers": "xformers is not installed: pip install xformers",
    "tlx": "triton.tlx.ops is not installed: pip install fbtriton, which replaces triton",
    "helion": "helion is not installed: pip install helion",
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def of(task: str, gradient: bool = False, dtype: torch.dtype = torch.float32) -> Case:
    return Case(JOINT, Ask(task, gradient, JOINT.map_keys if task == "map" else None), dtype)


def checked(implementation: Implementation, case: Case) -> float:
    """The largest error relative to the allowed one, which is what the bench's gate computes."""
    inputs = case.inputs(CPU)
    return Gate(case, inputs).check(run(implementation, case.ask, inputs), implementation.slack)


def with_lse(query, key, value, scale=None):
    """A kernel that returns the lse, of which any head dim of the value is right."""
    scores = query @ key.mT * (query.shape[3] ** -0.5 if scale is None else scale)
    return scores.softmax(dim=-1) @ value, scores.logsumexp(dim=-1)


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_missing_is_named_with_what_to_install(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    query = torch.empty(1, 2, 128, 64, dtype=torch.float16)
    reasons = IMPLEMENTATIONS[name].unsupported_reasons(query, query, query, Ask(IMPLEMENTATIONS[name].tasks[0]))
    assert len(reasons) == 1 and reasons[0].startswith(OPTIONAL[name])  # and nothing about this call


def test_a_missing_parent_is_missing_too():
    assert not_installed("no_such_package.part", "pip install it") == [
        "no_such_package.part is not installed: pip install it"
    ]
    assert not_installed("torch.nn", "") == []


def test_flash_attention_4_alone_is_not_flash_attention_2(tmp_path, monkeypatch):
    """Both put their modules into the folder flash_attn."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "cute" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    assert not_installed(*flash_attention.FLASH4) == []
    assert not_installed(*flash_attention.FLASH2) != []
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("trick", ["vk", "cat"])
def test_entropy_from_outputs(trick, gradient):
    attend = from_outputs.two_calls if trick == "vk" else lambda a, *call: from_outputs.one_call(a, False, *call)
    one = Implementation("one", lambda *call: attend(with_lse, *call), ("entropy",))
    assert checked(one, of("entropy", gradient)) <= 1.0  # without slack: in float32 it is exact


def test_zeros_in_queries_and_keys_change_no_result():
    """Where head dims must be alike, as on a CPU: one call of torch's flash attention."""
    assert checked(IMPLEMENTATIONS["cat-flash"], of("entropy")) <= 1.0
    seen = []

    def alike(query, key, value, scale):
        seen.append((query.shape[3], key.shape[3], value.shape[3]))
        return with_lse(query, key, value, scale)

    inputs = of("entropy").inputs(CPU)
    from_outputs.one_call(alike, True, inputs.query, inputs.key, inputs.value, Ask("entropy"))
    assert seen == [(32, 32, 32)]


def test_the_one_call_counts_the_width_of_value_and_key():
    query = torch.empty(1, 1, 8, 160)
    (reason,) = IMPLEMENTATIONS["cat-flash"].unsupported_reasons(query, query, query, Ask("entropy"))
    assert reason == "expected head_dim up to 256, got 320"
    assert IMPLEMENTATIONS["vk-flash"].unsupported_reasons(query, query, query, Ask("entropy")) == []


def test_every_kernel_with_an_lse_has_both_ways_to_the_entropy():
    names = {one.name for one in contenders(Ask("entropy"))}
    kernels = {"flash", "cudnn", "efficient", "flex", "flash-attn-4"}
    assert {f"{trick}-{kernel}" for trick in ("vk", "cat") for kernel in kernels} <= names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["attention-map-diffusers", "attline"])
def test_other_ways_to_a_map(name, dtype):
    assert checked(IMPLEMENTATIONS[name], of("map", dtype=dtype)) <= IMPLEMENTATIONS[name].slack
    case = of("map", gradient=True)
    inputs = case.inputs(CPU)
    reasons = IMPLEMENTATIONS[name].unsupported_reasons(inputs.query, inputs.key, inputs.value, case.ask)
    assert reasons == ["it has no backward pass"]


@pytest.mark.parametrize("task", ["plain", "lse"])
def test_flash_attention_4(task, monkeypatch):
    """Called as its interface documents: tokens before heads, `return_lse`, a pair in any case."""

    def flash_attn_func(q, k, v, softmax_scale=None, return_lse=False):
        out, lse = with_lse(*(t.transpose(1, 2) for t in (q, k, v)), softmax_scale)
        return out.transpose(1, 2), lse if return_lse else None

    for module in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setattr(sys.modules["flash_attn.cute"], "flash_attn_func", flash_attn_func, raising=False)
    assert checked(IMPLEMENTATIONS["flash-attn-4"], of(task, gradient=True)) <= 1.0
    for trick in ("vk", "cat"):
        assert checked(IMPLEMENTATIONS[f"{trick}-flash-attn-4"], of("entropy", gradient=True)) <= 1.0


def test_tlx(monkeypatch):
    def flash_attn(q, k, v, causal=True):
        assert not causal
        return with_lse(q, k, v)[0]

    for module in ("triton", "triton.tlx", "triton.tlx.ops"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setattr(sys.modules["triton.tlx.ops"], "flash_attn", flash_attn, raising=False)
    assert checked(IMPLEMENTATIONS["tlx"], of("plain")) <= 1.0
    monkeypatch.setattr("importlib.util.find_spec", lambda module: types.SimpleNamespace())
    query, key = torch.empty(1, 1, 96, 40), torch.empty(1, 1, 77, 40)
    reasons = IMPLEMENTATIONS["tlx"].unsupported_reasons(query, key, key, Ask())
    assert "expected head_dim 64 or 128, got 40" in reasons
    assert "expected equal lengths, a multiple of 128, got 96 and 77" in reasons


def test_flex_attention_without_compilation(monkeypatch):
    """The CPU has no backward pass of it."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(torch_backends, "_flex", lambda: flex_attention)
    assert checked(IMPLEMENTATIONS["flex"], of("lse")) <= 1.0
    assert checked(IMPLEMENTATIONS["cat-flex"], of("entropy")) <= 1.0


def test_flex_attention_is_asked_for_the_maximum_and_for_flash_attention(monkeypatch):
    """The CPU has neither, so only the request is checked."""
    from torch.nn.attention.flex_attention import AuxOutput, AuxRequest

    asked = []

    def flex(query, key, value, scale=None, return_aux=None, kernel_options=None):
        asked.append((return_aux, kernel_options))
        out, lse = with_lse(query, key, value, scale)
        return (out, AuxOutput(lse=lse)) if return_aux else out

    monkeypatch.setattr(torch_backends, "_flex", lambda: flex)
    assert checked(IMPLEMENTATIONS["flex-max"], of("lse")) <= 1.0
    assert checked(IMPLEMENTATIONS["flex-flash"], of("plain")) <= 1.0
    assert checked(IMPLEMENTATIONS["flex-flash"], of("lse")) <= 1.0
    by_flash = {"BACKEND": "FLASH"}
    assert asked == [(AuxRequest(True, True), None), (None, by_flash), (AuxRequest(lse=True), by_flash)]


@pytest.mark.skipif(not hasattr(torch.nn.attention, "activate_flash_attention_impl"), reason="needs a newer torch")
def test_a_flash_implementation_is_activated_around_its_own_runs_only(monkeypatch):
    """With an implementation that counts, registered as FlashAttention 4 registers itself."""
    from torch.nn import attention
    from torch.nn.attention import _registry

    live = []

    class Handle:
        def remove(self):
            live.remove("FA4")

    def register():
        live.append("FA4")
        return Handle()

    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA4", register)
    before = attention.current_flash_attention_impl()
    seen = []

    def sees(name):
        return Implementation(name, lambda *call: seen.append((name, tuple(live))) or materialized(*call))

    fa4 = Implementation("fa4", sees("fa4").attend, around=lambda: activated.flash_activated("FA4"))
    monkeypatch.setattr(
        "entropy_attn.bench.implementations.registry.IMPLEMENTATIONS", {"fa4": fa4, "torch": sees("torch")}
    )
    rows = measure(of("plain"), CPU, CpuClock())
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert set(seen) == {("fa4", ("FA4",)), ("torch", ())} and live == []
    assert attention.current_flash_attention_impl() == before
    with activated.flash_activated("FA4"):
        with activated.flash_activated("FA4"):
            assert live == ["FA4"]
        assert live == ["FA4"] and attention.current_flash_attention_impl() == "FA4"
    with pytest.raises(RuntimeError, match="inside"), activated.flash_activated("FA4"):
        raise RuntimeError("inside")
    assert live == [] and attention.current_flash_attention_impl() == before


def test_cudnns_python_kernels_are_activated_by_torchs_switch(monkeypatch):
    state = types.SimpleNamespace(on=False, available=True)
    for where in (torch.nn.attention, torch.backends.cuda):
        monkeypatch.delattr(where, activated.SWITCH, raising=False)
    query = torch.empty(1, 1, 8, 64, dtype=torch.float16)
    reasons = IMPLEMENTATIONS["sdpa-cudnn-python"].unsupported_reasons(query, query, query, Ask())
    assert reasons == [f"torch {torch.__version__} has no enable_cudnn_sdp_python: install a newer one"]
    where = torch.backends.cuda
    monkeypatch.setattr(where, activated.SWITCH, lambda on: setattr(state, "on", on), raising=False)
    monkeypatch.setattr(where, "cudnn_sdp_python_enabled", lambda: state.on, raising=False)
    monkeypatch.setattr(where, "is_cudnn_sdp_python_available", lambda: state.available, raising=False)
    one = IMPLEMENTATIONS["sdpa-cudnn-python"]
    with one.around():
        assert state.on
    assert not state.on
    state.available = False
    reasons = one.unsupported_reasons(query, query, query, Ask())
    assert reasons == ["cudnn.torch is not installed: pip install 'nvidia-cudnn-frontend>=1.32.3'"]


def test_variants_of_sdpa_force_their_backend(monkeypatch):
    forced = []

    @contextlib.contextmanager
    def sdpa_kernel(backend):
        forced.append(backend)
        yield

    monkeypatch.setattr(torch_backends, "sdpa_kernel", sdpa_kernel)
    inputs = of("plain").inputs(CPU)
    for name in ("sdpa-fa3", "sdpa-fa4", "sdpa-cudnn-python"):
        results = IMPLEMENTATIONS[name].attend(inputs.query, inputs.key, inputs.value, Ask())
        assert torch.equal(results["out"], F.scaled_dot_product_attention(inputs.query, inputs.key, inputs.value))
    assert forced == [SDPBackend.FLASH_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def test_a_context_that_fails_is_the_status_of_its_row():
    def broken():
        raise ImportError("no kernels")

    errors = {}

    class OneRun(CpuClock):
        round_ms = 0.0

    runs = {"good": lambda inputs: None, "bad": lambda inputs: None}
    times = interleaved(OneRun(), runs, [None], errors.__setitem__, around={"bad": broken})
    assert list(times) == ["good"] and str(errors["bad"]) == "no kernels"


def test_helions_kernel():
    pytest.importorskip("helion")
    import os

    if os.environ.get("HELION_INTERPRET") != "1":
        pytest.skip("needs Helion's interpreter: HELION_INTERPRET=1")
    library = torch.library.Library("aten", "IMPL")  # Helion's interpreter multiplies by an operator that no CPU has
    library.impl("bmm.dtype", lambda a, b, dtype: a.to(dtype) @ b.to(dtype), "CPU")
    for task in ("plain", "lse", "entropy"):
        assert checked(IMPLEMENTATIONS["helion"], of(task)) <= 1.0
    library._destroy()
