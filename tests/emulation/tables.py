"""Calls that use every row of the three configuration tables and every option, on emulated cards."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

from entropy_attn.kernels.backward.configs import backward_config, widest
from entropy_attn.kernels.common.head_dims import MAX_HEAD_DIM, MIN_HEAD_DIM
from entropy_attn.kernels.forward.configs import forward_config
from entropy_attn.kernels.maps.configs import map_config
from entropy_attn.kernels.pingpong.configs import feasible_tiles

from .cases import DTYPES, GRADS, LAYOUTS, MASKS, SCALES, TABLES, Case

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_120")
ALL_GRADS = "+".join(GRADS)
STATISTICS = "+".join(GRADS[:3])


def rows(configuration: Callable[[int], object], most: int = MAX_HEAD_DIM) -> Iterator[int]:
    """The widest head dim of each row of a table."""
    table = {d: configuration(d) for d in range(MIN_HEAD_DIM, most + 1, 8)}
    yield from (d for d, row in table.items() if row != table.get(d + 8))


def every_row(target: str) -> Iterator[Case]:
    """One call for each row, with lengths that fill no tile, in each dtype of the row."""
    for name, dtype in DTYPES.items():
        for mask, seqlen_k in (("none", 300), ("none", 77), ("bool", 133)):
            options = {"seqlen_k": seqlen_k, "has_mask": mask != "none"}
            for d in rows(lambda d: forward_config(target, d, d, dtype, **options)):  # noqa: B023  used at once
                yield Case(target, name, head_dim=d, head_dim_v=d, seqlen_k=seqlen_k, mask=mask)
        for mask, seqlen_k in (("none", 77), ("none", 128), ("none", 150), ("bool", 150)):
            options = {"seqlen_k": seqlen_k, "mask_per_query": mask == "bool"}
            for d in rows(lambda d: map_config(target, d, d, dtype, **options)):  # noqa: B023
                yield Case(
                    target, name, head_dim=d, head_dim_v=d, seqlen_k=seqlen_k, mask=mask, map_stop=min(77, seqlen_k)
                )
        for mask in ("none", "bool"):
            most = widest(target, dtype, has_mask=mask != "none", has_map=False)
            for d in rows(lambda d: backward_config(target, d, d, dtype, has_mask=mask != "none"), most):  # noqa: B023
                one_pass = backward_config(target, d, d, dtype, has_mask=mask != "none").one_pass
                for seqlen_k in (150,) if one_pass is None else (100, 150):
                    yield Case(target, name, head_dim=d, head_dim_v=d, seqlen_k=seqlen_k, mask=mask, grads=STATISTICS)


def every_option(target: str) -> Iterator[Case]:
    """Each option alone, some together, and lengths near the edges of a tile."""
    for dtype in DTYPES:
        yield from (Case(target, dtype, layout=layout, seqlen_k=200) for layout in LAYOUTS)
        yield from (Case(target, dtype, mask=mask) for mask in MASKS[1:])
    yield from (Case(target, scale=scale, heads=4) for scale in SCALES[1:])
    yield from (Case(target, layout=layout, grads=STATISTICS) for layout in LAYOUTS)
    for m, n in itertools.product((1, 127, 128, 129), (1, 63, 64, 65, 128, 129)):
        yield Case(target, seqlen_q=m, seqlen_k=n)
    yield from (Case(target, causal=True, seqlen_q=m, seqlen_k=n) for m, n in ((150, 200), (200, 150), (128, 128)))
    yield Case(target, batch=2, heads=4, heads_kv=2, scale="heads", grads=ALL_GRADS, map_start=5, map_stop=70)
    yield Case(target, heads=4, heads_kv=1, mask="excluding", grads=STATISTICS)
    yield Case(target, head_dim=40, head_dim_v=96, map_stop=133)
    for name, some_rows in itertools.product(TABLES[1:], (False, True)):
        yield Case(target, tables=name, some_rows=some_rows, heads_kv=1)
    yield from (Case(target, dtype, tables="both", of_rows=True, seqlen_k=200) for dtype in DTYPES)
    yield from (Case(target, tables="both", mask=mask, seqlen_k=200) for mask in MASKS[1:])
    yield Case(target, "bf16", tables="both", causal=True, of_rows=True, head_dim=80, head_dim_v=80, layout="packed")
    yield Case(target, tables="excluding", seqlen_k=77, map_stop=77)
    for name, some_rows in itertools.product(TABLES[1:], (False, True)):
        yield Case(target, tables=name, some_rows=some_rows, heads=4, heads_kv=2, map_stop=70, grads=ALL_GRADS)
    yield Case(target, tables="both", seqlen_k=150, map_start=3, map_stop=70, of_rows=True)
    for count in (1, 2, 3):
        for names in itertools.combinations(GRADS, count):
            needs = {"map_stop": 77} if "grad_map" in names else {}
            yield Case(target, seqlen_k=77, head_dim=32, head_dim_v=32, grads="+".join(names), **needs)
    if target == "sm_90":
        for name, n, causal in itertools.product(("rotated", "specialized"), (1, 64, 100, 192, 320), (False, True)):
            yield Case(target, seqlen_k=n, schedule=name, causal=causal)
        yield Case(target, seqlen_k=192, schedule="rotated", mask="bool")
        yield Case(target, seqlen_k=192, schedule="rotated", tables="both", some_rows=True, of_rows=True)
        yield Case(target, seqlen_k=192, schedule="specialized", of_rows=True)
        yield from every_pingpong(target)


def every_pingpong(target: str) -> Iterator[Case]:
    """The Gluon kernel with all of its tiles, and each option alone."""
    plain = functools.partial(Case, target, schedule="pingpong")
    for d in (16, 32, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256):
        for tiles in feasible_tiles(d):
            yield plain("bf16", head_dim=d, head_dim_v=d, seqlen_k=300, groups=tiles.groups)
    for groups, n, causal in itertools.product((2, 3), (1, 127, 128, 300, 520), (False, True)):
        yield plain(seqlen_q=200, seqlen_k=n, causal=causal, groups=groups)
    yield plain(seqlen_q=1, causal=True)
    for scale in SCALES[1:]:
        yield plain(scale=scale, heads=4, heads_kv=2, layout="packed", batch=2, causal=scale == "heads")


def everything() -> Iterator[Case]:
    for target in TARGETS:
        yield from every_row(target)
        yield from every_option(target)


# A minute of calls that every change has to pass: each kernel, with the oldest and the newest instructions.
FEW = [
    Case("sm_80", seqlen_k=200), Case("sm_90", seqlen_k=200), Case("sm_120", seqlen_k=200),
    Case("sm_89", "bf16", head_dim=40, head_dim_v=40, layout="padded", seqlen_q=5, seqlen_k=77),
    Case("sm_80", seqlen_k=77, map_stop=77, heads=3, heads_kv=3, mask="keys"),
    Case("sm_90", seqlen_k=150, map_start=3, map_stop=100, causal=True),
    Case("sm_80", seqlen_k=100, grads=STATISTICS), Case("sm_90", "bf16", seqlen_k=150, grads=STATISTICS),
    # dQ, dK and dV in one pass, with the queries in one part and in four
    Case("sm_90", "bf16", heads=4, seqlen_k=100, causal=True, scale="negative", grads=STATISTICS),
    Case("sm_90", heads=1, heads_kv=1, seqlen_q=230, seqlen_k=13, head_dim=40, head_dim_v=64, grads=STATISTICS),
    Case("sm_90", heads=1, heads_kv=1, seqlen_q=40, seqlen_k=77, head_dim=128, head_dim_v=128, grads=STATISTICS),
    Case("sm_90", seqlen_q=40, seqlen_k=77, mask="excluding", map_start=3, map_stop=70, grads=ALL_GRADS),
    Case("sm_80", seqlen_k=150, tables="both", some_rows=True, of_rows=True),
    Case("sm_90", "bf16", heads=2, heads_kv=1, seqlen_k=200, tables="both", of_rows=True),
    Case("sm_90", seqlen_k=77, tables="excluding", mask="added"),
    # gradients; 77 keys take one pass on Hopper
    Case("sm_80", heads_kv=1, seqlen_q=40, seqlen_k=130, tables="both", some_rows=True, grads=STATISTICS),
    Case("sm_90", "bf16", heads_kv=1, seqlen_q=40, seqlen_k=77, tables="both", some_rows=True, grads="grad_out"),
    Case("sm_90", batch=2, heads_kv=1, seqlen_q=20, seqlen_k=150, tables="scale", scale="samples", map_start=5,
         map_stop=70, grads="grad_map"),
    Case("sm_90", seqlen_k=200, schedule="rotated"), Case("sm_90", seqlen_k=192, schedule="specialized"),
    Case("sm_90", seqlen_q=130, seqlen_k=300, schedule="pingpong"),
    Case("sm_90", "bf16", batch=2, heads=2, heads_kv=1, seqlen_q=150, seqlen_k=300, head_dim=80, head_dim_v=80,
         layout="packed", scale="heads", causal=True, schedule="pingpong"),
    Case("sm_90", "bf16", seqlen_q=129, seqlen_k=200, causal=True, head_dim=80, head_dim_v=80, schedule="specialized"),
    Case("sm_80", "fp32", head_dim=32, head_dim_v=32, mask="excluding"),
    Case("sm_90", "bf16", heads=4, heads_kv=1, scale="heads", head_dim=80, head_dim_v=80, layout="packed"),
    # one causal query: a random call found that ptxas crashes on the loops of this constant length
    Case("sm_90", seqlen_q=1, seqlen_k=127, head_dim=72, head_dim_v=72, causal=True),
    # one key per row, where dP - delta is rounding error: a random call found that the budget was too small
    Case("sm_90", "fp32", heads=4, heads_kv=1, seqlen_q=31, seqlen_k=1, head_dim=96, head_dim_v=96, layout="padded",
         grads="grad_out+grad_entropy", seed=806425),
]  # fmt: skip
