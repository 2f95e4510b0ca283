"""The table of measured winners: to which calls it applies, and that its file agrees with the measurements."""

from __future__ import annotations

import csv
import dataclasses
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


SHAPE = {"target": "sm_90", "head_dim": 64, "seqlen_q": 1024, "seqlen_k": 1000, "entropy": True}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Makes a table of cards with a row each, for 1024 queries and keys with entropy."""

    def write(configs: dict[str, ForwardConfig]) -> dict:
        path = tmp_path / "measured.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(SHAPE | {"ms": 0.5, "device": card} | vars(config) for card, config in configs.items())
        read = table.__wrapped__(path)
        monkeypatch.setattr(module, "table", lambda: read)
        module._say_once.cache_clear()
        return read

    return write


@pytest.fixture
def rows(shipped):
    return shipped({"cpu": ODD})  # where the tensors of these tests are


def call(seqlen_q=1024, seqlen_k=1024, head_dim=64, *, dtype=torch.float16, entropy=True, **options) -> ForwardCall:
    q = torch.zeros(1, 2, seqlen_q, head_dim, dtype=dtype)
    k, v = torch.zeros(2, 1, 2, seqlen_k, head_dim, dtype=dtype)
    statistics = torch.zeros(1, 2, seqlen_q) if entropy else None
    target = options.pop("target", "sm_90")
    return ForwardCall(AttentionCall(q, k, v, **options), torch.empty_like(q), statistics, statistics, target)


def test_a_written_row_is_read_back(rows):
    assert rows == {("sm_90", 64, 10, 10, True): {"cpu": Measured(ODD, 0.5, None)}}
    assert measured("sm_90", "cpu", 64, 1024, 513, entropy=True).config == ODD
    assert not measured("sm_90", "cpu", 64, 1024, 513, entropy=True).faster_than_torch


def test_each_card_has_rows_of_its_own(shipped, recwarn):
    other = dataclasses.replace(ODD, num_warps=8)
    shipped({"NVIDIA H100 80GB HBM3": ODD, "NVIDIA H200": other})
    assert measured("sm_90", "NVIDIA H100 80GB HBM3", 64, 1024, 1024, entropy=True).config == ODD
    assert measured("sm_90", "NVIDIA H200", 64, 1024, 1024, entropy=True).config == other
    assert not recwarn.list and module.cards("sm_90") == ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    assert module.cards("sm_80") == []


def test_the_nearest_card_stands_in_and_is_named_once(shipped):
    other = dataclasses.replace(ODD, num_warps=8)
    shipped({"NVIDIA H200": other, "NVIDIA H100 80GB HBM3": ODD})
    expected = "no configuration was measured on NVIDIA H100 PCIe: using one that was the fastest on NVIDIA H100 80GB"
    with pytest.warns(UserWarning, match=expected) as caught:
        for _ in range(2):
            assert measured("sm_90", "NVIDIA H100 PCIe", 64, 1024, 1024, entropy=True).config == ODD
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="on cpu: using one that was the fastest on NVIDIA H200"):
        assert call().table_config() == other
    assert measured("sm_80", "NVIDIA H100 PCIe", 64, 1024, 1024, entropy=True) is None  # another target never does


def test_the_nearest_card_has_the_most_words_in_common():
    cards = ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"]
    assert module.nearest("NVIDIA H100 NVL", cards) == "NVIDIA H100 80GB HBM3"  # the first of two
    assert module.nearest("NVIDIA GH200 480GB", cards) == "NVIDIA H200"
    assert module.nearest("cpu", cards) == "NVIDIA H200"


def test_without_a_card_the_name_is_the_type_of_device():
    assert module.card_name(torch.device("cpu")) == "cpu"


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
    for (target, head_dim, *lengths, entropy), card, row in (
        (key, card, row) for key, by_card in table().items() for card, row in by_card.items()
    ):
        assert card
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
    cards = {row["device"] for row in chosen}  # rows of other cards are from files that this one replaced
    assert [row for row in shipped if row["device"] in cards] == chosen
    assert chosen or not shipped


def test_info_names_the_card_whose_configurations_a_device_takes(shipped, monkeypatch):
    from entropy_attn.cli.info import _measured_on

    monkeypatch.setattr("entropy_attn.kernels.common.support.device_target", lambda device: "sm_90")
    device = torch.device("cpu")
    shipped({})
    assert _measured_on(device) == "no card"
    shipped({"NVIDIA H200": ODD})
    assert _measured_on(device) == "NVIDIA H200"
