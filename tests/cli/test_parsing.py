"""Reading option values: scale policies and guidances with their settings."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("typer")
pytest.importorskip("diffusers")

from entropy_attn.cli import parsing
from entropy_attn.cli.parsing import parse_scale
from entropy_attn.guidance import TSAM
from entropy_attn.scale import POLICIES, Constant, Fixed, Layers, LogN, Steps, YaRN


def test_the_settings_of_a_guidance():
    found = parsing.parse_guidance(
        "tsam:alpha=10:steps=0..12:refine_at=0+10:map_size=8x4:step_range=1..0.5:variant=paper"
    )
    expected = {"alpha": 10, "steps": range(12), "refine_at": (0, 10), "map_size": (8, 4), "step_range": (1, 0.5)}
    assert found == TSAM(**expected, variant="paper")
    assert parsing.parse_guidance("off") is parsing.parse_guidance(None) is None


def _written(value):
    """A setting as a user writes it on the command line."""
    return "..".join(map(str, value)) if isinstance(value, tuple) else str(value)


# For every setting of every policy, a value that is not the default.
SETTINGS = {
    "value": 0.2,
    "factor": 1.5,
    "p": 0.25,
    "train_tokens": 64,
    "strength": 0.5,
    "direction": "down",
    "clamp": (0.9, 1.2),
    "count_text_tokens": True,
    "lambda_min": 1.1,
    "lambda_max": 1.5,
    "gamma": 1.5,
    "h_min": 0.25,
    "h_max": 6.0,
    "missing": "leave",
    "size": "32x32",
    "policy": "off",
    "step": 0,
    "branch": "uncond",
    "relative": True,
    "allow_nonpositive": True,
    "from_timestep": 900.0,
    "scale": 0.2,
    "per": "layer",
    "exponent": 1.0,
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_takes_every_setting(name, tmp_path, invented):
    table = tmp_path / "entropy.csv"
    invented.entropy.to_csv(table, index=False)
    (tmp_path / "hold.json").write_text('{"factors": {"a": {"64": 1.5}}}')
    chosen = {"profile": str(table), "size": "32x32", "policy": "off"}  # one of several in the profile
    chosen["factors"] = str(tmp_path / "hold.json")
    fields = dataclasses.fields(POLICIES[name])
    values = {**SETTINGS, **chosen}
    needed = {f.name: values[f.name] for f in fields if f.default is dataclasses.MISSING or f.name in chosen}
    for field in fields:
        settings = {**needed, field.name: values[field.name]}
        policy = parse_scale(":".join([name, *(f"{key}={_written(each)}" for key, each in settings.items())]))
        assert policy == POLICIES[name](**settings)
        assert field.name in needed or policy != POLICIES[name](**needed), f"{field.name} makes no difference"
    assert name in parsing.SCALE_HELP


def test_scale_options_become_the_policy():
    assert parse_scale("off") == Fixed()
    assert parse_scale("off:value=0") == Fixed(value=0)
    assert parse_scale("logn:strength=0.5:direction=up") == LogN(strength=0.5, direction="up")
    assert parse_scale("logn:clamp=0.9..1.2:count_text_tokens=true") == LogN(clamp=(0.9, 1.2), count_text_tokens=True)
    assert parse_scale("logn:clamp=..1.2") == LogN(clamp=(None, 1.2))
    assert parse_scale("constant:factor=1.1..1.2") == Constant((1.1, 1.2))
    turned = parse_scale("constant:factor=-1:allow_nonpositive=true")
    assert turned == Constant(-1, allow_nonpositive=True)
    assert parse_scale("yarn:steps=2..5") == Steps(YaRN(), 2, 5)
    assert parse_scale("yarn:steps=..5") == Steps(YaRN(), 0, 5)
    assert parse_scale("yarn:steps=5..") == Steps(YaRN(), 5)
    assert parse_scale("yarn:layers=^mid|up_blocks.1:steps=0..5:strength=2") == Layers(
        {"^mid|up_blocks.1": Steps(YaRN(strength=2), 0, 5)}
    )
    with pytest.raises(ValueError, match=r"profile: cannot read '\.\./none\.csv'"):
        parse_scale("adaptive:profile=../none.csv")
