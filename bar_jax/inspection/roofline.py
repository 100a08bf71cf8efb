"""What a compiled program computes and moves, and the time that a chip needs for it at least.

FLOPs are those of matrix products and convolutions, two per multiply-add, wherever the compiler
has put them. Bytes are those that each kernel reads from the device's main memory and writes to it,
padding included: of what it takes slices from the slices, of what it updates in place the update;
what is kept on the chip (a TPU's vector memory) counts when it is brought there. That caches may
hold on to an array between two kernels is not counted, nor is what vector units compute.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from bar_jax.inspection import hlo

# These give a name to what is there already.
_FREE_TARGETS = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound", "Sharding")
_FREE_TARGETS += ("SliceBitcast", "GatherScatterIndicesBitpacked")
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # and the operand that holds the update
_VIEWS = ("bitcast", "reshape", "get-tuple-element")
_CONTROL = ("while", "conditional", "call", "async-start")


class Chip(NamedTuple):
    """A device, from its maker's data sheet.

    Attributes:
      bfloat16, float32: dense peak, FLOP/s; float32 as JAX computes it by default: TF32 on a GPU,
        passes of bfloat16 on a TPU.
      bandwidth: of its main memory, bytes/s.
      memory: bytes.
    """

    bfloat16: float
    float32: float
    bandwidth: float
    memory: float


# By `device_kind`; the first name that it contains counts.
CHIPS = {
    "H100 PCIe": Chip(756e12, 378e12, 2.0e12, 80e9),
    "H100": Chip(989e12, 495e12, 3.35e12, 80e9),
    "H200": Chip(989e12, 495e12, 4.8e12, 141e9),
    "A100": Chip(312e12, 156e12, 2.039e12, 80e9),
    "TPU v4": Chip(275e12, 275e12, 1.2e12, 32e9),
    "TPU v5 lite": Chip(197e12, 197e12, 0.819e12, 16e9),
    "TPU v5e": Chip(197e12, 197e12, 0.819e12, 16e9),
    "TPU v5": Chip(459e12, 459e12, 2.765e12, 95e9),
    "TPU v6 lite": Chip(918e12, 918e12, 1.64e12, 32e9),
}


class Loop(NamedTuple):
    """A loop of a program: its name, and its iterations (1 if unknown)."""

    name: str
    iterations: int


class Operation(NamedTuple):
    """A kernel or transfer of a program.

    Attributes:
      instruction: of HLO.
      times: how often it runs.
      flops, bytes: each time.
      float32: whether one of its products takes float32 on both sides.
      loops: that it is in, outermost first.
    """

    instruction: hlo.Instruction
    times: int
    flops: int
    bytes: int
    float32: bool
    loops: tuple[Loop, ...]

    def seconds(self, chip: Chip) -> float:
        """Each time, at least."""
        peak = chip.float32 if self.float32 else chip.bfloat16
        return max(self.flops / peak, self.bytes / chip.bandwidth)


def chip(device_kind: str) -> Chip | None:
    """The data sheet of a device as JAX names it, if it is known here."""
    return next((sheet for name, sheet in CHIPS.items() if name in device_kind), None)


def operations(program: hlo.Program) -> list[Operation]:
    """Everything that a program runs; of a condition its most expensive branch."""
    return _operations(program, program.entry, 1, ())


def flops(found: Iterable[Operation]) -> int:
    """Of operations, with how often they run."""
    return sum(operation.times * operation.flops for operation in found)


def moved(found: Iterable[Operation]) -> int:
    """Bytes that operations read and write, with how often they run."""
    return sum(operation.times * operation.bytes for operation in found)


def main_loop(found: list[Operation]) -> list[Operation]:
    """Operations of the outermost loop that moves most: a sampler's over tokens; [] if none."""
    outermost = sorted((o for o in found if o.loops), key=lambda o: o.loops[0])
    groups = [list(own) for _, own in itertools.groupby(outermost, key=lambda o: o.loops[0])]
    return max(groups, key=moved, default=[])


def costliest(
    found: Iterable[Operation], key: Callable[[Operation], float], number: int = 10
) -> list[tuple[str, float, int]]:
    """The operations with the largest sums of `times * key(operation)`.

    Those of all layers, and of all pieces of one source line, count together.

    Returns:
      (source and kind, the sum, how often such operations run).
    """
    sums: dict[str, list] = {}
    for operation in found:
        i = operation.instruction
        source = re.sub(r"_\d+", "_*", i.source) or "?"
        kind = i.target or re.sub(r"[.\d]+$", "", i.name.lstrip("%"))
        own = sums.setdefault(f"{source} ({kind})", [0, 0])
        own[0] += operation.times * key(operation)
        own[1] += operation.times
    largest = sorted(sums.items(), key=lambda item: -item[1][0])[:number]
    return [(name, total, times) for name, (total, times) in largest]


def _operations(program, computation, times, loops) -> list[Operation]:
    found = []
    instructions = program.computations[computation]
    for i in instructions.values():
        if i.opcode in _CONTROL:
            pieces = []
            for name, trips in hlo.called(program, computation, i):
                inside = (*loops, Loop(i.name, trips)) if i.opcode == "while" else loops
                pieces.append(_operations(program, name, times * trips, inside))
            if i.opcode == "conditional":
                pieces = [max(pieces, key=lambda own: (moved(own), flops(own)))]
            found += itertools.chain.from_iterable(pieces)
        elif i.opcode not in hlo.GIVEN and i.target not in _FREE_TARGETS:
            count, float32 = _flops(program, instructions, i)
            size = _moved(program, instructions, i)
            found.append(Operation(i, times, count, size, float32, loops))
    return found


# Bytes.


def _moved(program, instructions, i) -> int:
    """Bytes that an instruction outside of fusions reads and writes in main memory."""
    made = sum(array.stored_bytes for array in hlo.written(i))
    if i.opcode.endswith("-done"):
        return 0
    if i.opcode in ("copy-start", "slice-start"):
        taken = hlo.arrays(instructions[i.operands[0]].shape)[0]
        begun = hlo.arrays(i.shape)[i.opcode == "slice-start"]
        return made + (taken.space == 0) * begun.stored_bytes
    if i.opcode.endswith("-start"):  # a collective's: (operands, results)
        return made
    if i.opcode in _SLICES:
        taken = hlo.arrays(instructions[i.operands[0]].shape)[0]
        return made + (taken.space == 0) * hlo.arrays(i.shape)[0].stored_bytes
    if i.opcode in _UPDATES:
        return 2 * _stored(instructions[i.operands[_UPDATES[i.opcode]]].shape)
    if i.opcode != "fusion":
        return made + sum(_stored(instructions[name].shape) for name in i.operands)
    inner = program.computations[hlo.called(program, "", i)[0][0]]
    taken = sum(
        _read(program, inner, parameter, hlo.arrays(instructions[operand].shape))
        for operand, parameter in zip(i.operands, _parameters(inner), strict=True)
    )
    return taken + _written(program, inner, hlo.arrays(i.shape))


def _read(program, inner, name, stored: tuple[hlo.Array, ...]) -> int:
    """Bytes that a fused computation reads of an array."""
    whole = sum(array.stored_bytes for array in stored if array.space == 0)
    if not whole:
        return 0
    total = 0
    for i in _users(inner).get(name, ()):
        if i.opcode in _VIEWS:
            total += _read(program, inner, i.name, stored)
        elif i.opcode in _SLICES and i.operands[0] == name and i.operands.count(name) == 1:
            total += sum(array.stored_bytes for array in hlo.arrays(i.shape))
        elif i.opcode == "dynamic-update-slice" and i.operands[0] == name:
            continue
        elif i.opcode == "scatter" and i.operands[0] == name:
            total += sum(array.stored_bytes for array in hlo.arrays(inner[i.operands[2]].shape))
        elif i.opcode == "fusion" and i.operands.count(name) == 1:
            below = program.computations[hlo.called(program, "", i)[0][0]]
            parameter = _parameters(below)[i.operands.index(name)]
            total += _read(program, below, parameter, stored)
        else:
            return whole
    return min(total, whole)


def _written(program, inner, results: tuple[hlo.Array, ...]) -> int:
    """Bytes that a fused computation writes."""
    given = hlo.root(inner)
    names = given.operands if given.opcode == "tuple" else [given.name]
    if len(names) != len(results):
        return sum(array.stored_bytes for array in results if array.space == 0)
    total = 0
    for name, array in zip(names, results, strict=True):
        update = _update(program, inner, inner[name])
        if array.space == 0:
            total += min(array.stored_bytes, update or array.stored_bytes)
    return total


def _update(program, inner, i) -> int:
    """Bytes of the update that an instruction of a fusion makes in place; 0 if it makes none."""
    while i.opcode in ("bitcast", "reshape"):
        i = inner[i.operands[0]]
    if i.opcode in _UPDATES:
        update = inner[i.operands[_UPDATES[i.opcode]]]
        return sum(array.stored_bytes for array in hlo.arrays(update.shape))
    if i.opcode == "fusion":
        below = program.computations[hlo.called(program, "", i)[0][0]]
        return _update(program, below, hlo.root(below))
    return 0


def _stored(shape: str) -> int:
    return sum(array.stored_bytes for array in hlo.arrays(shape) if array.space == 0)


def _parameters(inner: dict[str, hlo.Instruction]) -> list[str]:
    """Names of the parameters, in order."""
    found = [i for i in inner.values() if i.opcode == "parameter"]
    return [i.name for i in sorted(found, key=lambda i: int(i.operands[0]))]


def _users(inner: dict[str, hlo.Instruction]) -> dict[str, list[hlo.Instruction]]:
    """Instructions that take each name."""
    users: dict[str, list] = {}
    for i in inner.values():
        for name in dict.fromkeys(i.operands):
            users.setdefault(name, []).append(i)
    return users


# FLOPs.


def _flops(program, instructions, i) -> tuple[int, bool]:
    """Operations of an instruction's products, and whether one takes float32 on both sides."""
    if i.opcode == "fusion":
        inner = program.computations[hlo.called(program, "", i)[0][0]]
        found = [_flops(program, inner, below) for below in inner.values()]
        return sum(count for count, _ in found), any(wide for _, wide in found)
    if i.opcode not in ("dot", "convolution", "custom-call"):
        return 0, False
    taken = [hlo.arrays(instructions[name].shape) for name in i.operands[:2]]
    if len(taken) < 2 or not all(len(arrays) == 1 for arrays in taken):
        return 0, False
    (left,), (right,) = taken
    made = hlo.arrays(i.shape)[0]
    if i.opcode == "dot" or "gemm_backend_config" in i.attributes or "$matmul" in i.target:
        count = 2 * made.elements * _contracted(i.attributes, left)
    elif i.opcode == "convolution" or re.match(r"__cudnn\$conv\w*Forward", i.target):
        count = _convolution(i.attributes, left, right, made)
    elif i.target.startswith("__cudnn$fmha"):
        count = _attention(i.target, left, right)
    else:
        count = 0
    return count, bool(count) and left.dtype == right.dtype == "f32"


def _contracted(attributes: str, left: hlo.Array) -> int:
    """Length of the sums of a matrix product, as HLO or the backend's config says."""
    found = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)[}\]]', attributes)
    axes = [int(axis) for axis in re.findall(r"\d+", found[1])] if found else [-1]
    return math.prod(left.sizes[axis] for axis in axes)


def _attention(target: str, query: hlo.Array, key: hlo.Array) -> int:
    """Fused attention of [B, Q, H, C] with [B, K, H, C]: two products, backward five.

    Over all keys, though cuDNN leaves out what a causal mask hides.
    """
    products = 5 if "Backward" in target else 2
    return 2 * products * query.elements * key.sizes[1]


def _convolution(attributes: str, left: hlo.Array, right: hlo.Array, made: hlo.Array) -> int:
    """A convolution; products of padding and of the holes of a dilation do not count."""
    dims = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    spatial = [label for label in dims[3] if label.isdigit()]
    listed = lambda name, other: (
        fields[name].split("x") if name in fields else [other] * len(spatial)
    )
    size = lambda array, labels, label: array.sizes[labels.index(label)]
    total = 2 * size(made, dims[3], "b") * size(made, dims[3], "f") * size(right, dims[2], "i")
    names = (("size", "1"), ("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"))
    columns = [listed(*name) for name in (*names, ("rhs_dilate", "1"))]
    for n, label in enumerate(spatial):
        kernel, stride, pad, hole, spread = (column[n] for column in columns)
        total *= _pairs(
            *(size(left, dims[1], label), size(made, dims[3], label), int(kernel)),
            *(int(stride), int(pad.split("_")[0]), int(hole), int(spread)),
        )
    return total


@functools.lru_cache(maxsize=2**10)
def _pairs(length, outputs, kernel, stride, pad, hole, spread) -> int:
    """Pairs of an output and a weight that meet a number of the input, along one dimension."""
    count = 0
    for output in range(outputs):
        for weight in range(kernel):
            place = output * stride + weight * spread - pad
            count += place % hole == 0 and 0 <= place < hole * length
    return count
