"""The benchmark's gate, rows and workloads, on the CPU at small sizes. Times are never asserted."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys

import pytest
import torch

from entropy_attn.bench import measure as measuring
from entropy_attn.bench.cases import Case, cases
from entropy_attn.bench.implementations import registry as implementations
from entropy_attn.bench.implementations.contract import Ask, Implementation
from entropy_attn.bench.implementations.registry import IMPLEMENTATIONS, contenders
from entropy_attn.bench.implementations.softmax import materialized
from entropy_attn.bench.machine import Sensors
from entropy_attn.bench.measure import FIELDS, DeviceLost, failure, measure, measure_all
from entropy_attn.bench.presets import PRESETS, preset
from entropy_attn.bench.timing import CpuClock, Times, interleaved
from entropy_attn.bench.workloads import MODELS, Workload, sweep, workloads
from tests.support.interpreter import needs_interpreter

CPU = torch.device("cpu")
JOINT = Workload("tiny", "", "joint", 1, 3, 40, 40, 16, 2, (8, 40))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class OneRun(CpuClock):
    """Each implementation runs once in each round, because the interpreter is slow."""

    round_ms = 0.0


def measured(todo, names=None) -> list[dict]:
    clock = OneRun()
    return [row for case in todo for row in measure(case, CPU, clock, names)]


def of(workload: Workload, task: str = "plain", gradient: bool = False, dtype: torch.dtype = torch.float32) -> Case:
    return Case(workload, Ask(task, gradient, workload.map_keys if task == "map" else None), dtype)


def test_every_task_and_pass_on_the_cpu():
    names = [name for name in IMPLEMENTATIONS if name != "triton"]
    rows = measured(cases([JOINT], ("plain", "lse", "entropy", "map"), ("forward", "both"), [torch.float32]), names)
    assert all(set(row) <= set(FIELDS) for row in rows)
    timed = [row for row in rows if row["status"] == "ok"]
    assert all(row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] and row["tflops"] > 0 for row in timed)
    assert all(str(row["status"]).startswith("refused") and "p50_ms" not in row for row in rows if row not in timed)
    found = {(row["task"], row["pass"], row["implementation"]) for row in timed}
    for passes in ("forward", "both"):
        assert {("plain", passes, name) for name in ("auto", "reference", "sdpa", "sdpa-flash", "sdpa-math")} <= found
        assert {("entropy", passes, f"{name}+entropy") for name in ("auto", "materialised", "chunked")} <= found
        assert {("map", passes, f"{name}+map") for name in ("auto", "daam", "attend-and-excite")} <= found
    assert ("lse", "forward", "aten-flash+lse") in found and ("entropy", "forward", "vk-flash+entropy") in found
    assert ("entropy", "both", "vk-flash+entropy") not in found  # the lse of torch has no gradient


@needs_interpreter
@pytest.mark.parametrize(
    "task, gradient",
    [("plain", False), ("entropy", False), ("map", False), ("map", True),
     pytest.param("plain", True, marks=pytest.mark.slow), pytest.param("entropy", True, marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_kernels(task, gradient):
    (row,) = measured([of(JOINT, task, gradient, torch.float16)], ["triton"])
    assert row["status"] == "ok" and row["implementation"] == ("triton" if task == "plain" else f"triton+{task}")


def test_host_time_has_a_column_if_it_is_measured():
    class WithHostTime(OneRun):
        def runs(self, run, sets, count):
            return Times(super().runs(run, sets, count), host=[0.25] * count)

    (alone,) = measured([of(JOINT)], ["sdpa"])
    (row,) = measure(of(JOINT), CPU, WithHostTime(), ["sdpa"])
    assert row["host_ms"] == 0.25 and "host_ms" not in alone


def test_a_wrong_result_has_no_time(monkeypatch):
    def times(factor):
        return lambda q, k, v, ask: {"out": factor * materialized(q, k, v, ask)["out"]}

    def breaks(q, k, v, ask):
        raise TypeError("no such argument\nand more")

    invented = [
        Implementation("wrong", times(1.1)),
        Implementation("nan", times(float("nan"))),
        Implementation("cut", lambda q, k, v, ask: {"out": q[:, :, 1:]}),
        Implementation("breaks", breaks),
        Implementation("coarse", times(1.00001), slack=1000.0),
        Implementation("huge", times(1.0), matrices=1e12),
        Implementation("right", times(1.0)),
    ]
    monkeypatch.setattr(implementations, "IMPLEMENTATIONS", {i.name: i for i in invented})
    rows = {row["implementation"]: row for row in measured([of(next(sweep([16], [20], tokens=20)))])}
    assert rows["wrong"]["status"].startswith("wrong: out: error") and rows["nan"]["status"].startswith("wrong: out")
    assert rows["cut"]["status"].startswith("wrong: out: shape")
    assert rows["breaks"]["status"] == "refused: TypeError: no such argument"
    assert rows["huge"]["status"].startswith("out of memory: it would hold")
    assert {name for name, row in rows.items() if "p50_ms" in row} == {"coarse", "right"}
    assert rows["coarse"]["max_error"] > 1 >= rows["right"]["max_error"]


@pytest.mark.parametrize("name", ["out", "entropy", "dq", "dk", "dv"])
def test_the_gate_sees_every_result(name, monkeypatch):
    import entropy_attn.bench.measure as module

    real = module.run

    def spoiled(implementation, ask, inputs):
        results = real(implementation, ask, inputs)
        results[name][0, 0, -1] += 0.01
        return results

    monkeypatch.setattr(module, "run", spoiled)
    (row,) = measured([of(JOINT, "entropy", gradient=True)], ["materialised"])
    assert row["status"].startswith(f"wrong: {name}: error")


def test_out_of_memory_is_a_result_and_a_lost_device_ends_the_process():
    assert failure(torch.OutOfMemoryError("CUDA out of memory")) == "out of memory"
    assert failure(RuntimeError("No available kernel. Aborting execution.\nmore")).startswith("refused: No available")
    lost = [RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")]
    lost += [torch.AcceleratorError("illegal memory access")] if hasattr(torch, "AcceleratorError") else []
    for error in lost:
        with pytest.raises(DeviceLost, match="illegal memory access"):
            failure(error)


def test_a_device_error_after_which_the_device_still_works_is_a_result(monkeypatch):
    monkeypatch.setattr(measuring, "_device_answers", lambda: True)
    assert failure(RuntimeError("Triton Error [CUDA]: invalid argument")).startswith("refused: Triton Error [CUDA]")
    assert failure(RuntimeError("Triton Error [CUDA]: out of memory")) == "out of memory"


@pytest.mark.parametrize("run", [1, 4])
def test_a_lost_device_is_a_row_and_keeps_the_others(run, monkeypatch):
    """In the first run, which the gate checks, or during timing; rows of other cases are kept."""
    calls, at_risk = itertools.count(1), []

    def loses(q, k, v, ask):
        if next(calls) == run:
            raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
        return materialized(q, k, v, ask)

    invented = [Implementation("right", materialized), Implementation("loses", loses)]
    monkeypatch.setattr(implementations, "IMPLEMENTATIONS", {i.name: i for i in invented})
    with pytest.raises(DeviceLost, match="loses: Triton Error") as caught:
        measure(of(JOINT), CPU, OneRun(), at_risk=at_risk.append)
    rows = {row["implementation"]: row for row in caught.value.rows}
    assert rows["loses"]["status"].startswith("lost the device: Triton Error [CUDA]: an illegal memory access")
    assert rows["right"]["status"] == "not measured: loses lost the device"
    assert caught.value.by == [{"implementation": "loses"}]
    assert at_risk == [["right"], ["loses"], ["right", "loses"]][: 2 if run == 1 else 3]
    calls = itertools.count(1)
    found = []
    with pytest.raises(DeviceLost):
        for _, of_case in measure_all([of(JOINT), of(JOINT)], CPU):
            found += of_case
    assert [row["implementation"] for row in found] == ["right", "loses"]
    assert [row["implementation"] for row in measure(of(JOINT), CPU, OneRun(), skip=["loses"])] == ["right"]


def test_implementations_alternate_in_both_orders():
    order = []
    runs = {name: (lambda inputs, name=name: order.append(name)) for name in "ab"}
    times = interleaved(OneRun(), runs, [None], lambda name, error: None)
    assert "".join(order[-8:]) == "abbaabba" and {len(t) for t in times.values()} == {4}

    def fails(inputs):
        raise RuntimeError("later")

    errors = {}
    times = interleaved(OneRun(), {"good": print, "bad": fails}, [""], errors.__setitem__)
    assert list(times) == ["good"] and str(errors["bad"]) == "later"


def test_the_output_of_nvidia_smi(monkeypatch):
    sensors = Sensors(CPU)
    sensors.ask()
    assert sensors.answer() == {}
    for output, found in (("1980, 650.12", {"sm_mhz": "1980", "power_w": "650.12"}), ("[N/A], 70", {"power_w": "70"})):
        sensors._command = ["printf", output]
        sensors.ask()
        assert sensors.answer() == found
    sensors._command = ["no-such-program-here"]
    sensors.ask()
    assert sensors.answer() == {}


def test_inputs_are_fresh_and_rotate(monkeypatch):
    monkeypatch.setattr(CpuClock, "round_ms", 1e4)  # several runs in each round, however slow one is
    case, seen = of(JOINT), []
    monkey = Implementation("sees", lambda q, k, v, ask: seen.append(q.data_ptr()) or materialized(q, k, v, ask))
    implementations.IMPLEMENTATIONS["sees"] = monkey
    try:
        ((_, rows),) = measure_all([case], CPU, ["sees"])
    finally:
        del implementations.IMPLEMENTATIONS["sees"]
    assert rows[0]["status"] == "ok" and len(set(seen)) == 2
    assert not torch.equal(case.inputs(CPU).query, case.inputs(CPU).query)


def test_useful_flops_and_labels():
    (workload,) = sweep([40], [256], tokens=512)
    assert workload.batch == 2 and workload.flops == 4 * 2 * 8 * 256**2 * 40
    assert of(workload, gradient=True).flops == 3.5 * workload.flops
    assert of(workload).label == "sweep self B2 H8 N256 d40 float32: plain"


def test_workloads_of_models():
    found = {(w.kind, w.seqlen, w.heads, w.head_dim, w.layers) for w in workloads("sd15")}
    assert ("self", 4096, 8, 40, 5) in found and ("cross", 64, 8, 160, 1) in found
    assert [(w.seqlen, w.layers) for w in workloads("sdxl") if w.kind == "self"] == [(4096, 10), (1024, 60)]
    (flux,), (sd3,) = workloads("flux"), workloads("sd3", (512, 1024))
    assert flux.seqlen == flux.seqlen_k == 4096 + 512 and flux.map_keys == (0, 512)
    assert sd3.seqlen_k == 2048 + 333 and sd3.map_keys == (2048, 2048 + 333)
    assert workloads("wan-14b")[0].seqlen == 21 * 32 * 52
    for name in MODELS:
        assert MODELS[name].source
        for size in ((256, 256), (4096, 4096)):
            assert all(w.model == name and min(w.seqlen, w.seqlen_k, w.layers) > 0 for w in workloads(name, size))


@pytest.mark.parametrize(
    ("model", "transformer", "heads"),
    [("pixart", "PixArtTransformer2DModel", 16), ("flux", "FluxTransformer2DModel", 24),
     ("wan-14b", "WanTransformer3DModel", 40)],
)  # fmt: skip
def test_workloads_are_those_of_diffusers_defaults(model, transformer, heads):
    diffusers = pytest.importorskip("diffusers")
    defaults = {k: p.default for k, p in inspect.signature(getattr(diffusers, transformer)).parameters.items()}
    (workload, *_) = workloads(model)
    assert (workload.heads, workload.head_dim) == (defaults["num_attention_heads"], defaults["attention_head_dim"])
    calls = 2 if model.startswith("wan") else 1
    assert workload.layers == calls * (defaults["num_layers"] + defaults.get("num_single_layers", 0))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"model: expected one of .*, got 'sd9'"):
        workloads("sd9")
    with pytest.raises(ValueError, match="multiples of 64"):
        workloads("sd15", (100, 64))
    with pytest.raises(ValueError, match=r"implementations: expected some of .*, got 'magic'"):
        contenders(Ask(), ["magic"])
    with pytest.raises(ValueError, match="preset: expected one of quick, paper, full, got 'huge'"):
        preset("huge", "cpu")
    with pytest.raises(ValueError, match="map_keys: expected a range of keys for the task 'map', else None, got None"):
        Ask("map")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_presets_name_workloads_and_implementations(device):
    for name in PRESETS:
        chosen = preset(name, device)
        assert list(chosen.workloads())
        contenders(Ask(), chosen.implementations)


@pytest.mark.parametrize("script", ["forward", "backward", "maps"])
def test_scripts(script, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.kernels.{script}")
    shapes = () if script == "maps" else ([64], [4096])
    asked = list(module.questions(["float16"], *shapes))
    assert all(contenders(case.ask, names) for case, names in asked)
    rows = {i.row_name(case.ask) for case, names in asked for i in contenders(case.ask, names)}
    wanted = {"maps": {"triton", "triton+map", "materialised+map"}, "backward": {"triton", "triton+entropy", "flex"},
              "forward": {"triton", "triton+entropy", "sdpa-cudnn", "materialised+entropy"}}  # fmt: skip
    assert wanted[script] <= rows  # the rows that benchmarks/report puts into tables
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", [script])
        assert module.main() == 2
        assert "no GPU is visible to torch" in capsys.readouterr().err
