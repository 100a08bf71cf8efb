"""What a compiled program does needlessly: copies, float32, and waiting for the CPU."""

import re

from bar_jax.inspection import hlo
from bar_jax.inspection.roofline import Operation

_MOVES = ("copy", "transpose", "concatenate", "pad", "slice", "reverse", "convert", "broadcast")
_MOVES += ("reshape", "bitcast", "copy-start", "bitcast-convert")
_HOST = ("infeed", "outfeed", "send", "recv")
_HOST_TARGETS = re.compile("callback|MoveToHost|MoveToDevice|host_send|host_recv")
HOST_SPACE = 5


def loop_copies(program: hlo.Program, elements: int) -> list[hlo.Instruction]:
    """Instructions in loops that write an array of at least so many elements anew.

    With the elements of a KV cache's array: copies, transposes, and conversions of it. None are
    updates in place, and what is brought to a memory on the chip as it is.
    """
    found = {}
    for visit in hlo.visits(program):
        if not visit.loops or visit.fused:
            continue
        instructions = program.computations[visit.computation]
        for i in instructions.values():
            large = any(array.elements >= elements for array in hlo.written(i))
            if large and not _in_place(program, instructions, i, elements):
                found[visit.computation, i.name] = i
    return list(found.values())


def moves(program: hlo.Program, found: list[Operation]) -> list[Operation]:
    """Operations that compute nothing: copies, transposes, joins, padding and casts.

    Without those that bring an array as it is to a memory on the chip.
    """
    return [o for o in found if o.bytes and _only_moves(program, o.instruction)]


def float32_products(found: list[Operation]) -> list[Operation]:
    """Operations with a product of float32 by float32."""
    return [operation for operation in found if operation.float32 and operation.flops]


def float32_arrays(found: list[Operation], elements: int) -> list[Operation]:
    """Operations that write float32 arrays of at least so many elements; their bytes are these."""
    large = lambda array: array.dtype == "f32" and array.elements >= elements
    kept = []
    for operation in found:
        size = sum(a.stored_bytes for a in hlo.written(operation.instruction) if large(a))
        if size:  # of an update in place no more than that
            kept.append(operation._replace(bytes=min(size, operation.bytes)))
    return kept


def host_transfers(program: hlo.Program) -> list[hlo.Instruction]:
    """Instructions in loops that wait for the CPU: infeed, outfeed, send, recv, callbacks."""
    found = {}
    for visit in hlo.visits(program):
        for i in program.computations[visit.computation].values() if visit.loops else ():
            spaces = {array.space for array in hlo.arrays(i.shape)}
            to_host = i.opcode in ("copy", "copy-start") and HOST_SPACE in spaces
            if i.opcode in _HOST or _HOST_TARGETS.search(i.target) or to_host:
                found[visit.computation, i.name] = i
    return list(found.values())


def _in_place(program, instructions, i, elements) -> bool:
    """Whether the large arrays that an instruction gives are updates of what it takes."""
    if i.opcode in ("dynamic-update-slice", "scatter"):
        return True
    if i.opcode == "custom-call":
        return "output_to_operand_aliasing" in i.attributes
    if i.opcode != "fusion":
        return False
    inner = program.computations[hlo.called(program, "", i)[0][0]]
    given = hlo.root(inner)
    names = given.operands if given.opcode == "tuple" else [given.name]
    for name in names:
        below = inner[name]
        large = any(array.elements >= elements for array in hlo.arrays(below.shape))
        while below.opcode in ("bitcast", "reshape"):
            below = inner[below.operands[0]]
        if large and not _in_place(program, inner, below, elements):
            return False
    return True


def _only_moves(program, i) -> bool:
    if i.opcode == "copy-start":
        made, taken = hlo.arrays(i.shape)[:2]
        return made.space == taken.space
    if i.opcode != "fusion":
        return i.opcode in _MOVES
    inner = program.computations[hlo.called(program, "", i)[0][0]].values()
    return all(
        below.opcode in (*_MOVES, *hlo.GIVEN)
        or (below.opcode == "fusion" and _only_moves(program, below))
        for below in inner
    )
