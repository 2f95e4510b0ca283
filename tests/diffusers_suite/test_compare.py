"""How the two runs of diffusers' tests are compared, on invented reports."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

from tests.diffusers_suite import compare

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a.TestA" name="test_fine"/>
<testcase classname="tests.a.TestA" name="test_wrong"><failure>{failure}</failure></testcase>
<testcase classname="tests.b.TestB" name="test_fine"><skipped/></testcase>
<testcase classname="tests.b.TestB" name="test_setup"><error>no</error></testcase>
</testsuite></testsuites>"""


def read(tmp_path, failure: str) -> dict[str, str]:
    (tmp_path / "report.xml").write_text(REPORT.format(failure=failure))
    return compare.outcomes(tmp_path / "report.xml")


def test_outcomes_of_a_report(tmp_path):
    failed = {"TestA::test_fine": "passed", "TestA::test_wrong": "failed", "TestB::test_fine": "skipped",
              "TestB::test_setup": "failed"}  # fmt: skip
    assert read(tmp_path, "E  AssertionError") == failed
    refused = read(tmp_path, "E  entropy_attn.errors.Unroutable: cannot route layer")
    assert refused == failed | {"TestA::test_wrong": "refused"}


def test_what_passed_must_pass_or_be_refused():
    plain = dict.fromkeys(("kept", "refused", "broken", "gone"), "passed") | {"bad": "failed", "mended": "failed"}
    routed = {"kept": "passed", "refused": "refused", "broken": "failed", "bad": "failed", "mended": "passed"}
    both = compare.Outcomes(plain, routed)
    assert both.broken == ["broken", "gone"] and both.mended == ["mended"]
    row = both.row("model")
    assert [row[name] for name in ("passed", "passed_routed", "refused", "broken", "failed_in_both")] == [4, 2, 1, 2, 1]


def test_rows_of_other_models_stay(tmp_path):
    path, row = tmp_path / "suite.csv", dict.fromkeys(compare.COLUMNS, 0)
    compare.write(path, [row | {"model": "flux"}])
    compare.write(path, [row | {"model": "unet", "passed": 3}])
    with path.open(newline="") as file:
        assert [(row["model"], row["passed"]) for row in csv.DictReader(file)] == [("unet", "3"), ("flux", "0")]


def test_no_checkout(tmp_path):
    command = [sys.executable, compare.__file__, "--diffusers", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "not a checkout of diffusers" in done.stderr


@pytest.mark.parametrize("model", compare.FILES)
def test_every_file_is_a_model_test(model):
    assert compare.FILES[model].startswith("tests/models/") and compare.FILES[model].endswith(".py")
