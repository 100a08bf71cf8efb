"""Compiled programs as text: HLO, read into computations, instructions and the arrays they make.

The text is `compiled.as_text()`, after every pass of a compiler, so that each instruction outside
of a fusion is a kernel or a transfer, and its results are arrays in memory.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ARRAY = re.compile(r"(pred|token|opaque|[a-z]+\d\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_OPCODE = re.compile(r"([a-z][\w-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations)=\{?((?:%[\w.-]+(?:, )?)+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%[\w.-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_PARENTHESIS = re.compile(r"[()]")
# What these call is a function of two numbers.
_REDUCTIONS = ("reduce", "reduce-window", "scatter", "select-and-scatter", "sort", "map")
_REDUCTIONS += ("all-reduce", "reduce-scatter", "all-reduce-start")


# These write no array.
GIVEN = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "while")
GIVEN += ("conditional", "call", "opt-barrier", "add-dependency", "partition-id", "replica-id")


class Array(NamedTuple):
    """An array of a program.

    Attributes:
      dtype: as HLO writes it: bf16, f32, s32, pred, ...
      sizes: of its dimensions.
      order: dimensions from the one that is contiguous to the outermost.
      tile: the piece of the last dimensions of that order that is stored together, outermost
        first, as T(8,128) says; (): none.
      space: of memory; 0 is the device's main memory. On a TPU 1 is the vector memory on the chip.
    """

    dtype: str
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        """How many, without padding."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Without padding."""
        return self.elements * self._bits // 8

    @property
    def stored_bytes(self) -> int:
        """With the padding of its tiles."""
        sizes = [self.sizes[axis] for axis in self.order]
        tile = self.tile[::-1]
        while len(sizes) < len(tile):
            sizes.append(1)
        padded = [-(-size // step) * step for size, step in zip(sizes, tile, strict=False)]
        return math.prod(padded + sizes[len(tile) :]) * self._bits // 8

    @property
    def _bits(self) -> int:
        digits = re.search(r"\d+", self.dtype)
        return int(digits[0]) if digits else {"pred": 8}.get(self.dtype, 0)


class Instruction(NamedTuple):
    """A line of HLO.

    Attributes:
      name: with its %.
      shape: of the result, as text; see `arrays`.
      opcode: such as fusion, dot, copy-start.
      operands: names; of a constant its value, of a parameter its number.
      attributes: the rest of the line.
      root: whether it is what its computation gives.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def source(self) -> str:
        """The operation as JAX names it, "" if the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """What a custom call calls, "" of all else."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      computations: by name, each its instructions by name.
      entry: the name of the computation that runs first.
      devices: how many it runs on together.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str
    devices: int


class Visit(NamedTuple):
    """One way from the entry to a computation.

    Attributes:
      computation: its name.
      times: how often it is taken.
      fused: whether it leads through a fusion.
      loops: names of the loops that it leads through, outermost first.
    """

    computation: str
    times: int
    fused: bool
    loops: tuple[str, ...]


def parse(text: str) -> Program:
    """Reads what `compiled.as_text()` gives."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if current is None:
            header = re.match(r"(ENTRY )?(%[\w.-]+) \(.*\{$", line)
            if header:
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = _instruction(line)
            if instruction:
                current[instruction.name] = instruction
    partitions = re.search(r"num_partitions=(\d+)", text)
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


@functools.lru_cache(maxsize=2**14)
def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a result: one, or those of a tuple."""
    return tuple(_array(*found) for found in _ARRAY.findall(shape))


def written(i: Instruction) -> tuple[Array, ...]:
    """The arrays that an instruction outside of fusions writes to the device's main memory."""
    if i.opcode in GIVEN or i.opcode.endswith("-done"):
        return ()
    found = arrays(i.shape)
    if i.opcode in ("copy-start", "slice-start"):
        # (result, operand, ...) and ((operand), result, ...)
        found = (found[i.opcode == "slice-start"],)
    if i.target.startswith(("__cublas", "__cudnn")) and len(found) > 1:
        found = found[:-1]  # the rest is room to work in
    return tuple(array for array in found if array.space == 0)


def visits(program: Program) -> Iterator[Visit]:
    """Every way to every computation. Of a condition all branches are taken."""
    yield from _visits(program, Visit(program.entry, 1, False, ()))


def called(program: Program, computation: str, i: Instruction) -> list[tuple[str, int]]:
    """Computations that an instruction runs, and how often each time; all branches of a condition.

    Functions of two numbers, which a reduction or a sort takes, are none.
    """
    if i.opcode == "while":
        body, condition = (
            re.search(rf"{part}=(%[\w.-]+)", i.attributes)[1] for part in ("body", "condition")
        )
        return [(body, _trips(program, program.computations[computation], i, body, condition))]
    if i.opcode == "conditional":
        branches = " ".join(a or b for a, b in _BRANCHES.findall(i.attributes))
        return [(branch, 1) for branch in re.findall(r"%[\w.-]+", branches)]
    if i.opcode in _REDUCTIONS:
        return []
    names = " ".join(_CALLED.findall(i.attributes))
    return [(name, 1) for name in re.findall(r"%[\w.-]+", names)]


def root(instructions: dict[str, Instruction]) -> Instruction:
    """What a computation gives."""
    return next(i for i in instructions.values() if i.root)


def _array(dtype: str, sizes: str, layout: str) -> Array:
    sizes = tuple(int(size.removeprefix("<=")) for size in sizes.split(",") if size)
    order, _, rest = layout.partition(":")
    tile, space = re.search(r"T\(([\d,]+)\)", rest), re.search(r"S\((\d+)\)", rest)
    return Array(
        dtype,
        sizes,
        _integers(order) if order else tuple(reversed(range(len(sizes)))),
        _integers(tile[1]) if tile else (),
        int(space[1]) if space else 0,
    )


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?(%[\w.-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) if rest[0] == "(" else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = _OPCODE.match(rest)
    end = _closing(rest, opcode.end() - 1)
    operands = tuple(re.findall(r"%[\w.-]+", rest[opcode.end() : end]))
    if opcode[1] in ("constant", "parameter"):
        operands = (rest[opcode.end() : end - 1],)
    return Instruction(head[2], shape, opcode[1], operands, rest[end:], bool(head[1]))


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for found in _PARENTHESIS.finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    raise ValueError(f"no closing parenthesis: {text[start : start + 80]}")


def _visits(program: Program, here: Visit) -> Iterator[Visit]:
    yield here
    for i in program.computations[here.computation].values():
        for name, times in called(program, here.computation, i):
            loops = (*here.loops, i.name) if i.opcode == "while" else here.loops
            fused = here.fused or i.opcode == "fusion"
            yield from _visits(program, Visit(name, here.times * times, fused, loops))


def _trips(program: Program, around: dict, loop: Instruction, body: str, condition: str) -> int:
    """Iterations of a loop: as the compiler says, else as its counter says; 1 if neither does."""
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known[1])
    tests, updates = program.computations[condition], program.computations[body]
    test = root(tests)
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return 1
    counter, limit = (tests.get(name) for name in test.operands)
    if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
        return 1
    index = int(re.search(r"index=(\d+)", counter.attributes)[1])
    start = _constant(around, around[loop.operands[0]], index)
    given = root(updates)
    update = updates.get(given.operands[index]) if given.opcode == "tuple" else None
    step = 1
    if update is not None and update.opcode == "add":
        steps = [_constant(updates, updates[name]) for name in update.operands]
        step = next((s for s in steps if s), 1)
    return max(0, -(-(int(limit.operands[0]) - (start or 0)) // step))


def _constant(instructions: dict, i: Instruction, index: int | None = None) -> int | None:
    """The integer that an instruction gives, or an element of its tuple; None if unknown."""
    if index is not None:
        return (
            _constant(instructions, instructions[i.operands[index]])
            if i.opcode == "tuple"
            else None
        )
    if i.opcode in ("copy", "bitcast", "convert"):
        return _constant(instructions, instructions[i.operands[0]])
    known = i.opcode == "constant" and re.fullmatch(r"-?\d+", i.operands[0])
    return int(i.operands[0]) if known else None
