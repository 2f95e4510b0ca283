"""What `make gpu` runs, without a GPU: parts that pass, fail, hang, fork, kill themselves and lose the device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.common import read_rows
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parts import PARTS, Part

ROOT = Path(__file__).parents[2]
DESCRIBE = (
    "{python}",
    "-c",
    "import os; os.write(int(os.environ['ENTROPY_ATTN_ANSWERS']), b'{\"target\": \"sm_00\"}\\n')",
)
# A worker without torch: the name of a case says what happens.
WORKER = """
import json, os, signal, subprocess, sys, time
pipe = os.fdopen(int(os.environ["ENTROPY_ATTN_ANSWERS"]), "w")
def answer(**message):
    pipe.write(json.dumps(message) + chr(10)); pipe.flush()
names = sys.argv[1].split(",")
fields = ["device", "case", "way", "status", "ms"]
answer(fields=fields, about={"device": sys.argv[2]}, cases={n: {"case": n} for n in names})
for line in sys.stdin:
    question = json.loads(line)
    case, rows = question["case"], []
    print("asked for", case, "without", question["skip"], "in", os.getpid(), flush=True)
    for way in ("first", "second", "third"):
        if {"way": way} in question["skip"]:
            continue
        answer(at=[{"way": way}])
        if way == "second":
            if case == "hangs": time.sleep(60)
            if case == "killed": os.kill(os.getpid(), signal.SIGKILL)
            if case == "exits": sys.exit(7)
            if case == "forks":
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]); time.sleep(60)
            if case == "loses":
                answer(lost="illegal address", by=[{"way": way}]); sys.exit(3)
            if case == "slow": time.sleep(float(sys.argv[3]))
        rows.append({"way": way, "status": "wrong: by much" if case == "wrong" else "ok", "ms": 1.5})
    answer(rows=rows)
"""


def cases_of(tmp_path: Path, *names: str, limit: float = 1.5, device: str = "stub", slow: float = 60.0,
             file: str = "table.csv") -> Part:  # fmt: skip
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = ("{python}", str(script), ",".join(names), device, str(slow))
    return Part("table", "stub cases", command, 10.0, least=0.1, case_seconds=limit, file=file)


def code(name: str, text: str, share: float = 1.0, **more) -> Part:
    return Part(name, "a stub", ("{python}", "-c", textwrap.dedent(text)), share, **{"least": 0.1, **more})


def table(out: Path, name: str = "table.csv") -> list[dict[str, str]]:
    return read_rows(out / name)


def statuses(out: Path, name: str = "table.csv") -> dict[tuple[str, str], str]:
    return {(row["case"], row["way"]): row["status"] for row in table(out, name)}


def parts_of(out: Path) -> dict[str, tuple[str, str]]:
    return {
        row["part"]: (row["status"], row["detail"]) for row in table(out, "checks.csv") if row["name"] == "(all of it)"
    }


def alive(text: str) -> bool:
    """Whether there is a process with this text on its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text in (folder / "cmdline").read_text():
                return True
        except OSError:
            continue
    return False


def test_whatever_a_case_does_affects_only_itself(tmp_path):
    out = tmp_path / "out"
    part = cases_of(tmp_path, "good", "hangs", "killed", "exits", "forks", "loses", "wrong", "last")
    assert main(["--out", str(out), "--budget", "30"], [part], DESCRIBE) == 1
    found = statuses(out)
    for case in ("good", "last"):
        assert [found[case, way] for way in ("first", "second", "third")] == ["ok"] * 3
    blamed = {"hangs": "hung: no answer within 1.5 s", "killed": "died: signal SIGKILL", "exits": "died: exit code 7",
              "forks": "hung: no answer within 1.5 s", "loses": "lost the device: illegal address"}  # fmt: skip
    for case, status in blamed.items():
        assert found[case, "second"] == status
        assert found[case, "first"] == found[case, "third"] == "ok"  # from another child, without the one to blame
    assert found["wrong", "first"] == "wrong: by much"
    assert {row["device"] for row in table(out)} == {"stub"}
    assert parts_of(out)["table"] == ("failed", "8 cases; 8 bad rows in table.csv")
    assert not alive(str(tmp_path)), "a process was left behind"


def test_commands_that_fail_hang_and_leave_processes_behind(tmp_path):
    out, mark = tmp_path / "out", f"mark{os.getpid()}"
    forks = f"""
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60) # {mark}"])
        print("said before the end", flush=True)
    """
    hangs = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print("said before it hung", flush=True); time.sleep(60)
    """
    parts = [
        code("passes", "print('fine')"),
        code("fails", "raise SystemExit(5)"),
        code("forks", forks),
        code("dies", "import os; os.kill(os.getpid(), 9)"),
        code("lacks", "", modules=("no_such_package",), programs=("no-such-program",)),
        code("no program", "", usual=False),
        code("long", "", least=1000.0),
        Part("absent", "a stub", ("/no/such/program",), 1.0, least=0.1),
        code("hangs", hangs, share=0.3),
        code("after", "print('still here')"),
    ]
    import benchmarks.gpu.run as run

    before, run.GRACE_SECONDS = run.GRACE_SECONDS, 0.3
    try:
        assert main(["--out", str(out), "--budget", "16"], parts, DESCRIBE) == 1
    finally:
        run.GRACE_SECONDS = before
    found = parts_of(out)
    assert found["passes"] == found["forks"] == found["after"] == ("ok", "exit code 0")
    assert found["fails"] == ("failed", "exit code 5") and found["dies"] == ("failed", "signal SIGKILL")
    lacks = "this machine does not have the package no_such_package and the program no-such-program"
    assert found["lacks"] == ("skipped", lacks)
    assert found["long"][0] == "skipped" and found["long"][1].startswith("it needs 1000 s, but its share")
    assert found["absent"][0] == "failed" and "no/such/program" in found["absent"][1]
    assert found["hangs"] == ("unfinished", "its share of the time was used up")
    assert "no program" not in found
    log = (out / "log.txt").read_text()
    assert all(text in log for text in ("said before the end", "said before it hung", "still here"))
    assert not alive(mark), "a process that a part left behind is still running"


def test_resuming_measures_the_missing_rows(tmp_path):
    out = tmp_path / "out"
    # the part's time is too short for the case in the middle, which then has no row
    first = cases_of(tmp_path, "a", "slow", "b", limit=30.0, slow=60.0)
    assert main(["--out", str(out), "--budget", "6"], [first], DESCRIBE) == 3
    assert {row["case"] for row in table(out)} == {"a"}
    with (out / "table.csv").open("a") as file:
        file.write("stub,b,fir")  # as if the process was killed while it wrote
    again = cases_of(tmp_path, "a", "slow", "b", limit=30.0, slow=0.0)
    assert main(["--out", str(out), "--budget", "20", "--resume"], [again], DESCRIBE) == 0
    rows = [(row["case"], row["way"]) for row in table(out)]
    assert len(rows) == len(set(rows)) == 9
    assert parts_of(out)["table"] == ("ok", "3 cases, 1 of them from before")
    other = cases_of(tmp_path, "a", "c", device="another")
    assert main(["--out", str(out), "--resume"], [other], DESCRIBE) == 1
    assert "expected rows of device 'another', but it has some of 'stub'" in parts_of(out)["table"][1]


def started(tmp_path: Path, parts: list[Part], *options: str, until: str) -> tuple[subprocess.Popen, Path]:
    """The runner in another process, as soon as it has printed a line with `until`; and its output folder."""
    out, script = tmp_path / "out", tmp_path / "drive.py"
    script.write_text(
        "import sys\nfrom benchmarks.gpu.__main__ import main\nfrom benchmarks.gpu.parts import Part\n"
        f"sys.exit(main({['--out', str(out), *options]!r}, {parts!r}, {DESCRIBE!r}))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)},
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    for line in process.stdout:
        if until in line:
            break
    return process, out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_runner_and_rows_are_kept(tmp_path, number):
    parts = [cases_of(tmp_path, "a", "slow", "b", limit=60.0), Part("next", "a stub", ("true",), 1.0)]
    process, out = started(tmp_path, parts, until="asked for slow")
    process.send_signal(number)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert {row["case"] for row in table(out)} == {"a"}
    assert parts_of(out) == {"table": ("unfinished", "stopped; 1 of 3 cases"), "next": ("skipped", "stopped before it")}
    assert "--resume" in rest and not alive(str(tmp_path))


def test_a_signal_to_the_runner_also_stops_its_command(tmp_path):
    part = code("sleeps", f"import time; print('sleeping', flush=True); time.sleep(60)  # {tmp_path}", share=1.0)
    process, out = started(tmp_path, [part], "--budget", "20", until="sleeping")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and parts_of(out) == {"sleeps": ("unfinished", "stopped")}
    assert not alive(f"# {tmp_path}")


def test_a_killed_runner_leaves_its_rows_and_no_process(tmp_path):
    part = cases_of(tmp_path, "a", "slow", limit=60.0, file="archive/bench/table.csv")
    process, out = started(tmp_path, [part], until="asked for slow")
    process.kill()
    process.wait()
    process.stdout.close()
    with zipfile.ZipFile(out / "archive.zip") as archive:
        assert archive.read("bench/table.csv").decode().count("ok") == 3
    until = time.monotonic() + 60
    while alive(str(tmp_path)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(str(tmp_path))


def test_nothing_runs_without_a_device(tmp_path, capsys):
    nothing = ("{python}", "-c", "raise SystemExit('no GPU is visible to torch')")
    assert main(["--out", str(tmp_path / "out")], [code("passes", "")], nothing) == 2
    assert "no GPU is visible" in capsys.readouterr().out
    assert not (tmp_path / "out" / "checks.csv").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--budget", "0"], "--budget: expected a number of seconds above 0, got 0"),
        (["--only", "nothing"], "invalid choice: 'nothing'"),
        (["--out", "{used}"], "--out: expected a folder without results, or --resume to continue"),
        (["--out", "{file}"], "--out: expected a folder, got the file"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tmp_path, capsys, given, message):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "forward.csv").write_text("device\n")
    (tmp_path / "file").write_text("")
    given = [word.format(used=tmp_path / "used", file=tmp_path / "file") for word in given]
    with pytest.raises(SystemExit) as stopped:
        main(given, [code("passes", "")], DESCRIBE)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_parts_leave_at_most_eight_files():
    assert len({part.name for part in PARTS}) == len(PARTS)
    files = {part.file for part in PARTS if part.file and not part.file.startswith("archive/")}
    assert len(files | {"log.txt", "checks.csv", "archive.zip"}) <= 8
    order = [part.name for part in PARTS if part.usual]
    wanted = ["warm", "smoke", "forward", "maps", "backward", "launch", "tests", "tuning", "guidance", "bench"]
    assert [name for name in order if name in wanted] == wanted
    assert order[-2:] == ["schedule-tests", "schedules"]
    json.dumps([part.what for part in PARTS])
