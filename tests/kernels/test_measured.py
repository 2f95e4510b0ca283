"""The table of measured winners: to which calls it applies, and that its file agrees with the measurements."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.head_dims import MAX_HEAD_DIM
from entropy_attn.kernels.common.targets import INTERPRETER, TARGETS
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.forward import measured as module
from entropy_attn.kernels.forward.configs import SCHEDULES, ForwardConfig, forward_candidates, forward_config
from entropy_attn.kernels.forward.launch import ForwardCall
from entropy_attn.kernels.forward.measured import COLUMNS, FILE, Measured, length_bucket, measured, table

TUNING = Path(__file__).parents[2] / "benchmarks" / "results" / "tuning.csv"
ODD = ForwardConfig(64, 32, 4, 3, descriptors=True, schedule="specialized", max_registers=None)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """The table read from a file with one row, for 1024 queries and keys with entropy."""
    path = tmp_path / "measured.csv"
    values = {"target": "sm_90", "head_dim": 64, "seqlen_q": 1024, "seqlen_k": 1000, "entropy": True, "ms": 0.5}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerow(values | vars(ODD))
    read = table.__wrapped__(path)
    monkeypatch.setattr(module, "table", lambda: read)
    return read


def call(seqlen_q=1024, seqlen_k=1024, head_dim=64, *, dtype=torch.float16, entropy=True, **options) -> ForwardCall:
    q = torch.zeros(1, 2, seqlen_q, head_dim, dtype=dtype)
    k, v = torch.zeros(2, 1, 2, seqlen_k, head_dim, dtype=dtype)
    statistics = torch.zeros(1, 2, seqlen_q) if entropy else None
    target = options.pop("target", "sm_90")
    return ForwardCall(AttentionCall(q, k, v, **options), torch.empty_like(q), statistics, statistics, target)


def test_a_written_row_is_read_back(rows):
    assert rows == {("sm_90", 64, 10, 10, True): Measured(ODD, 0.5, None)}
    assert measured("sm_90", 64, 1024, 513, entropy=True).config == ODD
    assert not measured("sm_90", 64, 1024, 513, entropy=True).faster_than_torch


def test_a_matching_call_takes_the_measured_row(rows):
    assert call().table_config() == ODD
    assert call(600, 544).table_config() == ODD


@pytest.mark.parametrize(
    "other",
    [
        call(seqlen_q=512),
        call(seqlen_k=2048),
        call(head_dim=80),
        call(entropy=False),
        call(dtype=torch.float32),
        call(is_causal=True),
        call(attn_mask=torch.ones(1, 1, 1, 1024, dtype=torch.bool)),
        call(target="sm_80"),
        call(seqlen_k=1000),  # a specialized loop needs complete blocks
    ],
)
def test_other_calls_take_the_static_row(rows, other):
    assert other.table_config() == forward_config(**other.options())


def test_a_schedule_serves_what_it_can(monkeypatch):
    """A row for the Gluon kernel: Triton's interpreter and other head dims of value take the static row."""
    candidates = forward_candidates("sm_90", 64, 64, torch.float16)
    turns = next(each for each in candidates if each.schedule == "pingpong")
    monkeypatch.setattr(launch, "measured", lambda *shape, **options: Measured(turns, 0.5, None))
    assert call().table_config() == call(seqlen_k=1000).table_config() == turns
    wider = call()
    wider.call.value = torch.zeros(1, 2, 1024, 80, dtype=torch.float16)
    for other in (wider, call(target=INTERPRETER), call(target="sm_100"), call(is_causal=True)):
        assert other.table_config() == forward_config(**other.options())


def test_strides_that_descriptors_cannot_have(rows):
    skewed = torch.zeros(1, 2, 1024, 65, dtype=torch.float16)[..., :64]
    for name in ("query", "key", "value"):
        other = call()
        setattr(other.call, name, skewed)
        assert other.table_config() == forward_config(**other.options())


def test_buckets():
    assert [length_bucket(n) for n in (0, 1, 2, 3, 4, 5, 1024, 1025)] == [0, 0, 1, 2, 2, 3, 10, 11]


def test_the_shipped_file_is_well_formed():
    for (target, head_dim, *lengths, entropy), row in table().items():
        assert target in TARGETS and head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM
        assert all(0 <= bucket <= 30 for bucket in lengths) and isinstance(entropy, bool)
        assert row.config.schedule in SCHEDULES and row.ms > 0


def test_the_shipped_file_agrees_with_the_measurements():
    with FILE.open(newline="") as file:
        shipped = list(csv.DictReader(file))
    chosen = []
    if TUNING.exists():
        with TUNING.open(newline="") as file:
            chosen = [{name: row[name] for name in COLUMNS} for row in csv.DictReader(file) if row["chosen"] == "True"]
    assert shipped == chosen
