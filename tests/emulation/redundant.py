"""Why a planted fault that was not found is harmless; the reasons are checked on the same calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

NOT_REACHED = "not reached by these calls"
# Vector clocks judge what orders accesses: if they find nothing without it, that holds for any order of the warps.
ORDERS = {
    "barrier": "others order the same: no two accesses are left without an order, in any schedule",
    "product fence": "no register of the products that follow was used since the fence before",
    "proxy fence": "nothing was written to what the products that follow read since the fence before",
    "arrival": "what it announces is announced by others as well",
    "copy wait": "the copies were waited for already",
    "product wait": "the products were waited for already",
    "phase wait": "the phase was waited for already",
    "product commit": "the next commit takes its products along before anyone waits",
    "invalidation": "no mbarrier is made in its place again",
    "initialisation": "others make the same mbarrier before it is used: one that nobody made would be found",
}


def reason(mutant: Any, cases: list[Any], tried: Callable[[list[Any], Any], str]) -> str:
    """Why a surviving mutant is harmless; empty if no reason is known: then the card should have found the fault."""
    program, index = mutant.original, mutant.index
    if tried(cases, program.changed(index, "trap")) == "survived":
        return NOT_REACHED
    if mutant.kind == "predicate":
        if tried(cases, program.changed(index, "trap guard")) == "survived":
            return "its predicate is true for every thread of these calls"
        return _harmless_without_guard(mutant) or _useless(mutant, cases, tried)
    if mutant.kind == "copy commit":
        return _merged(mutant)
    return ORDERS.get(mutant.kind, "")


def _harmless_without_guard(mutant: Any) -> str:
    op = mutant.instruction.op
    if op.startswith("ld.shared"):
        return "all threads may read there, and those who should not do not use it"
    if op.startswith(("st.shared", "st.global")):
        return "all threads store the same there"
    if re.match(r"cp\.async\.bulk\.tensor\.\d+d\.global\.shared", op):
        return "all threads store the same tile there"
    if op.startswith("ld.global"):
        return "what it reads beyond lies in the same tensor, and is masked where it is used"
    if op.startswith(("cp.async.bulk.commit_group", "cp.async.bulk.wait_group")):
        return "a thread without bulk copies of its own commits and waits for nothing"
    return ""


def _useless(mutant: Any, cases: list[Any], tried: Callable[[list[Any], Any], str]) -> str:
    """Whether an arrival may happen any number of times or never: that of a buffer that is not filled again."""
    arrives = mutant.instruction.op.startswith("mbarrier.arrive")
    if arrives and tried(cases, mutant.original.changed(mutant.index, "removed")) == "survived":
        return "nobody waits for what it announces"
    return ""


def _merged(mutant: Any) -> str:
    """Without a commit, its copies join the next group; if a wait comes first, nobody reads these copies."""
    for following in mutant.original.kernel.code[mutant.index + 1 :]:
        if following.op == "cp.async.commit_group":
            return "the next commit takes its copies along, and they are waited for with that group"
        if following.op == "cp.async.wait_group":
            break
    return "nobody reads its copies, those of the last turn of a loop: a read before they have landed would be found"
