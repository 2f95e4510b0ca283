"""The child's side of cases.py: says what its cases are, and measures those that it is asked for.

    python -m benchmarks.gpu.worker forward --device cuda

Questions are lines of JSON on its input, answers are lines on the pipe of the runner; by hand, both are the terminal.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any

from benchmarks.gpu.child import ANSWERS


def serve(table: Any, questions: IO[str], answer: Callable[[dict[str, Any]], None]) -> int:
    """Until there are no more questions, or the device is lost."""
    from entropy_attn.bench.measure import DeviceLost, failure

    answer({"fields": list(table.fields), "about": table.about, "cases": table.cases()})
    for line in questions:
        question = json.loads(line)
        try:
            try:
                rows = table.measure(question["case"], question["skip"], lambda at: answer({"at": at}))
            except DeviceLost:
                raise
            except (Exception, SystemExit) as error:  # the latter of scripts that found something wrong
                traceback.print_exc()
                rows = [{"status": failure(error).replace("refused: ", "failed: ", 1)}]
        except DeviceLost as lost:
            answer({"lost": str(lost)} | ({"by": lost.by} if lost.by else {}))
            return 3
        answer({"rows": rows})
    return 0


def main() -> int:
    from benchmarks.gpu.device import opened
    from benchmarks.gpu.tables import TABLES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--device", default="cuda", help="cuda, or emulated:sm_90 for small cases without a GPU")
    parser.add_argument("--commit", help="the commit that the rows name")
    args = parser.parse_args()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the runner asks where it hangs
    pipe = os.fdopen(int(os.environ[ANSWERS]), "w") if ANSWERS in os.environ else sys.stdout

    def answer(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message, default=str) + "\n")
        pipe.flush()

    with opened(args.device) as device:
        return serve(TABLES[args.table](device, args.commit or None), sys.stdin, answer)


if __name__ == "__main__":
    sys.exit(main())
