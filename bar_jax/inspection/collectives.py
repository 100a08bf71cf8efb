"""What devices send each other: the collectives of a compiled program, counted in its HLO text.

A collective in the body of a loop counts once per iteration. Where the compiler has made a product
overlap with the gather of its weights (a "windowed" product), the gather is a ring of permutations,
and is counted as those.
"""

import collections
import math
import re
from typing import NamedTuple

import numpy as np

from bar_jax.inspection import hlo

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(((?:[^()]|\([^()]*\))*)\))? ?\{([^}]*)\}"
)


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
        fraction = (devices - 1) / devices
        if self.kind == "all-reduce":
            return 2 * fraction * self.bytes
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.bytes if devices > 1 else 0
        return fraction * self.bytes


def collectives(program: hlo.Program) -> list[Collective]:
    """The collectives of a compiled program for several devices, each with how often it runs.

    Returns:
      In the order of the text. Of a condition the branches count as if all of them ran. One that
      runs in a loop of unknown length counts once.
    """
    times, fused = collections.Counter(), set()
    for visit in hlo.visits(program):
        times[visit.computation] += visit.times
        if visit.fused:
            fused.add(visit.computation)
    found = {}
    for computation, instructions in program.computations.items():
        for i in instructions.values():
            kind = i.opcode.removesuffix("-start")
            if kind not in KINDS or not times[computation]:
                continue
            if computation.startswith("%all-reduce-scatter"):  # as the TPU's compiler writes it
                kind = "reduce-scatter"
            operands = sum(
                array.bytes for name in i.operands for array in hlo.arrays(instructions[name].shape)
            )
            groups = _groups(i.attributes, program.devices)
            size = operands * groups.shape[1] if kind == "all-gather" else operands
            one = Collective(kind, size, groups, times[computation], i.source)
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
    sums = {}
    for kind in KINDS:
        own = [c for c in found if c.kind == kind]
        if own:
            sums[kind] = {
                "times": sum(c.times for c in own),
                "bytes": sum(c.times * c.bytes for c in own),
                "sent_bytes": round(sum(c.times * c.sent for c in own)),
                "largest_bytes": max(c.bytes for c in own),
            }
    return sums


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
