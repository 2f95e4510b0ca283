"""No public name and no parameter may disappear: public_names.txt has a line for each.

A new name or parameter needs a line there. A line may be removed only with an entry in the CHANGELOG.
"""

from __future__ import annotations

import inspect
import operator
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import entropy_attn as ea
from tests.support.docstrings import public_modules, public_names

LISTED = (Path(__file__).parent / "public_names.txt").read_text(encoding="utf-8").splitlines()
MODULES = public_modules()


@pytest.mark.parametrize("line", LISTED)
def test_it_exists_with_its_parameters(line):
    name, takes, parameters = line.rstrip(")").partition("(")
    value = operator.attrgetter(name)(ea)
    if takes:
        found = [name for name in inspect.signature(value).parameters if name != "self"]
        assert found == [name for name in parameters.split(", ") if name]


def test_every_public_name_is_listed():
    listed = {line.partition("(")[0] for line in LISTED}
    assert {prefix + name for prefix, module in MODULES.items() for name in public_names(module)} <= listed
