"""What the driver receives is compared with the PTX and the arguments: every kind of difference is found."""

from __future__ import annotations

import ctypes
import types

import pytest
import torch

import entropy_attn as ea
from tests.support.oracle import make_qkv

from . import launches, tensormaps
from .card import card, emulated
from .program import Finding


@pytest.fixture(scope="module")
def launch():
    """One launch with descriptors: its program, source, metadata and arguments, and what the driver received."""
    seen = {}
    check = launches.check_arguments

    def keep(kernel, source, metadata, arguments, values):
        seen.update(kernel=kernel, source=source, metadata=metadata, arguments=list(arguments), values=list(values))
        check(kernel, source, metadata, arguments, values)

    with pytest.MonkeyPatch.context() as patch, emulated("sm_90"):
        patch.setattr(launches, "check_arguments", keep)
        q, k, v = make_qkv(1, 2, 70, 144, 64, dtype=torch.float16)
        ea.attention(q, k, v, impl="triton", return_lse=True)
        assert len(card().launches) == 1
    return types.SimpleNamespace(**seen)


def check(launch, **changed):
    given = {name: list(value) if isinstance(value, list) else value for name, value in vars(launch).items()} | changed
    launches.check_arguments(**given)


def test_a_correct_launch_passes(launch):
    check(launch)


def test_any_wrong_byte_is_found(launch):
    for k, p in enumerate(launch.kernel.parameters[:-2]):
        if p.size == launches.TENSOR_MAP_BYTES:
            continue
        values = list(launch.values)
        values[k] = bytes([values[k][0] ^ 1]) + values[k][1:]
        with pytest.raises(Finding, match=f"parameter {k} "):
            check(launch, values=values)


def test_assumptions_of_the_compiler_must_hold(launch):
    names = list(launch.source.signature)

    def with_item(name: str, **items):
        """The arguments, with some items of one of them replaced."""
        i = names.index(name)
        return [*launch.arguments[:i], launch.arguments[i]._replace(**items), *launch.arguments[i + 1 :]]

    query = launch.arguments[names.index("q")].ptr
    with pytest.raises(Finding, match=r"q\.ptr was compiled as aligned"):
        check(launch, arguments=with_item("q", ptr=query.reshape(-1)[1:]))
    with pytest.raises(Finding, match=r"lengths\.seqlen_k was compiled as a multiple of 16 and is 145"):
        check(launch, arguments=with_item("lengths", seqlen_k=145))
    arguments = list(launch.arguments)
    arguments[names.index("BLOCK_M")] = 32
    with pytest.raises(Finding, match="BLOCK_M was compiled as 128 and launched as 32"):
        check(launch, arguments=arguments)


@pytest.mark.parametrize("block, shared, match", [((64, 1, 1), 0, "a block of"), (None, 10**6, "of shared memory")])
def test_block_and_shared_memory(launch, block, shared, match):
    with pytest.raises(Finding, match=match):
        launches.check_shape(launch.kernel, block or (launch.kernel.threads, 1, 1), shared, 232_448, 0)


SOUND = {"kind": 6, "rank": 2, "address": 4096, "sizes": [64, 100], "strides": [128], "box": [64, 32], "steps": [1, 1]}


@pytest.mark.parametrize(
    "changed, problem",
    [({}, None), ({"address": 4104}, "address"), ({"strides": [120]}, "strides"), ({"box": [64, 300]}, "box"),
     ({"box": [4, 32]}, "row of 8 bytes"), ({"box": [128, 32]}, "wider than the swizzle"), ({"sizes": [0, 1]}, "sizes"),
     ({"kind": 77}, "type 77"), ({"steps": [2, 1]}, "element strides")],
    ids=str,
)  # fmt: skip
def test_the_rules_of_tensor_maps(changed, problem):
    given = SOUND | changed
    types = {"sizes": ctypes.c_uint64, "strides": ctypes.c_uint64, "box": ctypes.c_uint32, "steps": ctypes.c_uint32}
    arrays = {name: (t * len(given[name]))(*given[name]) for name, t in types.items()}
    to = ctypes.create_string_buffer(128)
    tensormaps.problems.clear()
    code = tensormaps.encode(
        ctypes.addressof(to), given["kind"], given["rank"], given["address"], arrays["sizes"], arrays["strides"],
        arrays["box"], arrays["steps"], 0, 3, 0,
    )  # fmt: skip
    assert (code, tensormaps.problems[:1]) == (0, []) if problem is None else problem in tensormaps.problems[0]
