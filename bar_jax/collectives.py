"""What devices send each other: the collectives of a compiled program, counted in its HLO text.

A collective in the body of a loop counts once per iteration. Where the compiler has made a product
overlap with the gather of its weights (a "windowed" product), the gather is a ring of permutations,
and is counted as those.
"""

import collections
import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_SHAPE = re.compile(r"(pred|token|opaque|[a-z]+\d\w*)\[([\d,]*)\]")
_OPCODE = re.compile(r"([a-z][\w-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations)=\{?((?:%[\w.-]+(?:, )?)+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%[\w.-]+))")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(((?:[^()]|\([^()]*\))*)\))? ?\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: of KINDS.
      bytes: of the whole array: what a gather gives, what a reduction takes on each device.
      groups: [G, g] integers, the devices (by their place in the mesh) that take part together; of
        a permutation those that it joins, each group a chain or a ring.
      times: how often it runs.
      name: of the operation in the source, as JAX writes it.
    """

    kind: str
    bytes: int
    groups: np.ndarray
    times: int
    name: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends each time, by the ring algorithms, which are the least."""
        devices = self.groups.shape[1]
        share = (devices - 1) / devices
        if self.kind == "all-reduce":
            return 2 * share * self.bytes
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.bytes if devices > 1 else 0
        return share * self.bytes


class _Instruction(NamedTuple):
    """A line of HLO."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    attributes: str
    root: bool


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled program, each with how often it runs.

    Args:
      hlo: `compiled.as_text()` of a program for several devices.

    Returns:
      In the order of the text. Of a condition the branches count as if all of them ran. One that
      runs in a loop of unknown length counts once.
    """
    computations, entry = _parse(hlo)
    partitions = re.search(r"num_partitions=(\d+)", hlo)
    devices = int(partitions[1]) if partitions else 1
    times, fused = collections.Counter(), set()
    for name, count, in_fusion in _calls(computations, entry):
        times[name] += count
        if in_fusion:
            fused.add(name)
    found = {}
    for computation, instructions in computations.items():
        for i in instructions.values():
            kind = i.opcode.removesuffix("-start")
            if kind not in KINDS or not times[computation]:
                continue
            if computation.startswith("%all-reduce-scatter"):  # as the TPU's compiler writes it
                kind = "reduce-scatter"
            operands = sum(_bytes(instructions[name].shape) for name in i.operands)
            groups = _groups(i.attributes, devices)
            size = operands * groups.shape[1] if kind == "all-gather" else operands
            source = re.search(r'op_name="([^"]*)"', i.attributes)
            one = Collective(kind, size, groups, times[computation], source[1] if source else "")
            # A TPU's collective that overlaps with other work stands in a fused computation with
            # each piece of that work, under one number of its channel; a piece may be in a loop
            # although the collective runs once.
            channel = re.search(r"channel_id=(\d+)", i.attributes)
            key = channel[1] if channel and computation in fused else (computation, i.name)
            if key not in found or found[key].times > one.times:
                found[key] = one
    return list(found.values())


def by_kind(found: list[Collective]) -> dict[str, dict[str, int]]:
    """Sums over the collectives of each kind.

    Returns:
      For each kind that there is: `times` it runs, `bytes` of the whole arrays, `sent_bytes` of
      each device, `largest_bytes` of one array.
    """
    told = {}
    for kind in KINDS:
        own = [c for c in found if c.kind == kind]
        if own:
            told[kind] = {
                "times": sum(c.times for c in own),
                "bytes": sum(c.times * c.bytes for c in own),
                "sent_bytes": round(sum(c.times * c.sent for c in own)),
                "largest_bytes": max(c.bytes for c in own),
            }
    return told


# Bytes per second that a device sends, from the makers' data sheets.
V5E_LINK = 50e9  # one way; 4 links to the neighbours of a torus, 400 GB/s both ways together
NVLINK = 450e9  # one way, to the other 7 of a node; 900 GB/s both ways
INFINIBAND = 50e9  # one way, to other nodes: an adapter of 400 Gbit/s for each H100 of a DGX
NODE = 8


def seconds_on_v5e(found: list[Collective]) -> float:
    """Time to send all, one after another, on a slice of TPU v5e.

    A ring that goes both ways keeps two of a chip's four links busy; what uses all four takes half.
    """
    return sum(c.times * c.sent for c in found) / (2 * V5E_LINK)


def seconds_on_h100(found: list[Collective]) -> float:
    """Time to send all, one after another, on nodes of eight H100 with InfiniBand between them.

    A group inside a node uses NVLink. What leaves a node does so through the adapters of the node's
    devices that are in the group.
    """
    total = 0.0
    for c in found:
        nodes = c.groups[0] // NODE
        inside = np.unique(nodes, return_counts=True)[1].min()
        rate = NVLINK if np.ptp(nodes) == 0 else min(NVLINK, INFINIBAND * inside)
        total += c.times * c.sent / rate
    return total


def _parse(hlo: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Computations by name, each its instructions by name; and the name of the first to run."""
    computations, entry, current = {}, "", None
    for line in hlo.splitlines():
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
    return computations, entry


def _instruction(line: str) -> _Instruction | None:
    head = re.match(r"\s+(ROOT )?(%[\w.-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) if rest[0] == "(" else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = _OPCODE.match(rest)
    end = _closing(rest, opcode.end() - 1)
    operands = re.findall(r"%[\w.-]+", rest[opcode.end() : end])
    if opcode[1] == "constant":
        operands = [rest[opcode.end() : end - 1]]
    return _Instruction(head[2], shape, opcode[1], operands, rest[end:], bool(head[1]))


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in itertools.count(start):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1


def _calls(
    computations: dict, name: str, times: int = 1, fused: bool = False
) -> Iterator[tuple[str, int, bool]]:
    """Every way to a computation, how often it is gone, and whether it leads through a fusion."""
    yield name, times, fused
    for i in computations[name].values():
        inner = []
        if i.opcode == "while":
            body, condition = (
                re.search(rf"{part}=(%[\w.-]+)", i.attributes)[1] for part in ("body", "condition")
            )
            trips = _trips(computations, computations[name], i, body, condition)
            inner = [(body, times * trips)]
        elif i.opcode == "conditional":
            branches = " ".join(a or b for a, b in _BRANCHES.findall(i.attributes))
            inner = [(branch, times) for branch in re.findall(r"%[\w.-]+", branches)]
        elif i.opcode not in ("reduce", "scatter", "sort", "all-reduce", "reduce-scatter"):
            called = " ".join(_CALLED.findall(i.attributes))
            inner = [(callee, times) for callee in re.findall(r"%[\w.-]+", called)]
        for callee, count in inner:
            yield from _calls(computations, callee, count, fused or i.opcode == "fusion")


def _trips(computations, around, loop: _Instruction, body: str, condition: str) -> int:
    """Iterations of a loop: as the compiler says, else as its counter says; 1 if neither does."""
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known[1])
    test = next(i for i in computations[condition].values() if i.root)
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return 1
    counter, limit = (computations[condition].get(name) for name in test.operands)
    if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
        return 1
    index = int(re.search(r"index=(\d+)", counter.attributes)[1])
    start = _constant(around, around[loop.operands[0]], index)
    root = next(i for i in computations[body].values() if i.root)
    update = computations[body].get(root.operands[index]) if root.opcode == "tuple" else None
    step = 1
    if update is not None and update.opcode == "add":
        steps = [
            _constant(computations[body], computations[body][name]) for name in update.operands
        ]
        step = next((s for s in steps if s), 1)
    return max(0, -(-(int(limit.operands[0]) - (start or 0)) // step))


def _constant(instructions: dict, i: _Instruction, index: int | None = None) -> int | None:
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


def _bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    total = 0
    for dtype, sizes in _SHAPE.findall(re.sub(r"\{[^}]*\}", "", shape)):
        digits = re.search(r"\d+", dtype)
        bits = int(digits[0]) if digits else {"pred": 8}.get(dtype, 0)
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
    return total


def _groups(attributes: str, devices: int) -> np.ndarray:
    """[G, g] devices that take part together, from any of the forms in which HLO says it."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        return _joined(re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        return np.array([_integers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    iota = _IOTA.search(attributes)
    if iota:
        return _iota(iota[2]).reshape(_integers(iota[1]))
    mesh = _MESH.search(attributes)
    if mesh:
        return _mesh_groups(*mesh.groups())
    if "replica_groups=" in attributes and "replica_groups={}" not in attributes:
        raise ValueError(f"unknown form of groups: {attributes[:200]}")
    return np.arange(devices)[None]


def _iota(text: str) -> np.ndarray:
    """The numbers that `[4,2]T(1,0)` stands for: 0 to 7 in that shape, transposed; or a list."""
    shape = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not shape:
        return np.array(_integers(text))
    sizes = _integers(shape[1])
    axes = _integers(shape[2]) if shape[2] else range(len(sizes))
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(axes)


def _mesh_groups(mesh: str, ids: str | None, named: str) -> np.ndarray:
    """Groups along axes of a mesh.

    Args:
      mesh: 'a'=2,'b'=8
      ids: of its devices, as `_iota` reads them; None: in order.
      named: 'a' or, for a part of an axis, 'b':(2)4: the factor 4 of 8 that has 2 in front of it.
    """
    sizes, names = [], []
    parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named)
    for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh):
        before = 1
        for _, front, own in sorted(
            (p for p in parts if p[0] == axis and p[2]), key=lambda p: int(p[1])
        ):
            sizes += [int(front) // before, int(own)]
            names += [None, (axis, front, own)]
            before = int(front) * int(own)
        sizes.append(int(size) // before)
        names.append((axis, "", ""))
    along = [names.index(part) for part in parts]
    rest = [i for i in range(len(sizes)) if i not in along]
    places = np.arange(math.prod(sizes)) if ids is None else _iota(ids).ravel()
    places = places.reshape(sizes).transpose(rest + along)
    return places.reshape(-1, math.prod(sizes[i] for i in along))


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _joined(pairs: list[tuple[str, str]]) -> np.ndarray:
    """Groups of devices that a permutation joins; of several lengths, the longest ones."""
    target = {int(a): int(b) for a, b in pairs if a != b}
    groups, seen = [], set()
    starts = [a for a in target if a not in target.values()] + list(target)
    for start in starts:
        chain, device = [], start
        while device is not None and device not in seen:
            seen.add(device)
            chain.append(device)
            device = target.get(device)
        groups.append(chain)
    longest = max(map(len, groups), default=0)
    return np.array([group for group in groups if len(group) == longest] or [[0]])
