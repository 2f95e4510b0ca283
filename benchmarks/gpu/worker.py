"""The child process of cases.py: lists its cases, and measures those that are requested.

    python -m benchmarks.gpu.worker forward --device cuda
    python -m benchmarks.gpu.worker smoke --device emulated:sm_90

Requests are lines of JSON on stdin, answers are lines on the pipe of the runner, or on stdout without a runner.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any

from benchmarks.common import add_commit, new_parser
from benchmarks.gpu.child import ANSWERS


def serve(table: Any, questions: IO[str], answer: Callable[[dict[str, Any]], None]) -> int:
    """Answer until there are no more requests, or the device is lost; returns the exit code."""
    from entropy_attn.bench.measure import DeviceLost, failure

    answer({"fields": list(table.fields), "about": table.about, "cases": table.cases()})
    for line in questions:
        question = json.loads(line)
        try:
            try:
                rows = table.measure(question["case"], question["skip"], lambda at: answer({"at": at}))
            except DeviceLost:
                raise
            except (Exception, SystemExit) as error:  # scripts raise the latter for wrong results
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

    parser = new_parser(__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--device", default="cuda", help="cuda, or emulated:sm_90 for small cases without a GPU")
    add_commit(parser)
    args = parser.parse_args()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the runner asks for the stack of a hanging child
    pipe = os.fdopen(int(os.environ[ANSWERS]), "w") if ANSWERS in os.environ else sys.stdout

    def answer(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message, default=str) + "\n")
        pipe.flush()

    with opened(args.device) as device:
        return serve(TABLES[args.table](device, args.commit or None), sys.stdin, answer)


if __name__ == "__main__":
    sys.exit(main())
