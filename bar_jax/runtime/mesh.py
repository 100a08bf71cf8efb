"""The device mesh and how arrays are laid out on it.

Three axes: `data` (copies of the parameters, pieces of the batch), `fsdp` (pieces of the
parameters and of the batch) and `tensor` (pieces of heads and hidden units). Parameters carry
logical axis names (`embed`, `mlp`, ...); the table below is the only place that maps them to the
mesh. The same program runs on one CPU, eight GPUs and a pod.
"""

import contextlib
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bar_jax.runtime.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
T = TypeVar("T")

# logical axis of a parameter -> mesh axis. An axis that is not listed is never split.
RULES = {
    "embed": "fsdp",  # the width of the residual stream
    "heads": "tensor",  # attention heads
    "mlp": "tensor",  # hidden units of an MLP
}


def axis_sizes(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
    """Sizes of the mesh axes, with -1 (at most one) replaced by whatever is left.

    Raises:
      InputError: if the sizes do not multiply to the number of devices.
    """
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    found = f"data={data}, fsdp={fsdp}, tensor={tensor}"
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise InputError("mesh", found, "positive sizes, at most one of them -1 (what is left)")
    known = math.prod(size for size in sizes.values() if size != -1)
    if free and devices % known == 0:
        sizes[free[0]] = devices // known
    if math.prod(sizes.values()) != devices:
        raise InputError("mesh", found, f"sizes whose product is the {devices} devices present")
    return tuple(sizes.values())


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
    """The mesh over all (or the given) devices; -1 takes whatever is left."""
    whole = devices is None
    devices = jax.devices() if whole else devices
    sizes = axis_sizes(data, fsdp, tensor, len(devices))
    # Auto: under the default (Explicit) axes FSDP matmuls and table lookups raise.
    mesh = jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    if whole and jax.process_count() > 1 and devices[0].platform == "cpu":
        _meet(mesh)
    return mesh


def _meet(mesh: jax.sharding.Mesh) -> None:
    """Lets devices that will talk, along any axes, find each other while all processes are here.

    Gloo, over which CPUs talk, looks for the others when they first talk, and for 30 s alone: less
    than processes may be apart when they have compiled a training step.
    """
    some = [axes for n in range(1, len(AXES) + 1) for axes in itertools.combinations(AXES, n)]
    sums = lambda x: [jax.lax.psum(x, axes) for axes in some]
    cut = NamedSharding(mesh, P(AXES))
    x = jax.make_array_from_callback((mesh.size,), cut, lambda i: np.ones(mesh.size, np.int32)[i])
    mapped = jax.shard_map(sums, mesh=mesh, in_specs=P(AXES), out_specs=P(AXES))
    compiled = jax.jit(mapped).lower(x).compile()
    wait_for_all("mesh")
    jax.block_until_ready(compiled(x))


def batch_ways(mesh: jax.sharding.Mesh) -> int:
    """Into how many pieces a batch is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """First axis cut over `data` and `fsdp`, the rest whole."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


class Share(NamedTuple):
    """What a process holds of every batch: rows that it reads, computes and reports.

    Where `tensor` is larger than a process, several processes hold the same rows.

    Attributes:
      pieces: numbers of the pieces, of `ways`, that its devices hold; ascending.
      ways: into how many pieces a batch is cut.
      index, count: which share it is, and how many different ones there are; all are as large.
      first: whether this process is the first that holds it, and so the one that counts it.
    """

    pieces: tuple[int, ...]
    ways: int
    index: int
    count: int
    first: bool

    def rows(self, batch_size: int) -> np.ndarray:
        """Its rows of a batch, as `put_batch` takes them: ascending int64 [batch_size / count]."""
        size = batch_size // self.ways
        return np.concatenate(
            [np.arange(piece * size, (piece + 1) * size) for piece in self.pieces]
        )


def batch_share(mesh: jax.sharding.Mesh) -> Share:
    """This process's share of every batch.

    Raises:
      InputError: processes whose rows overlap without being the same.
    """
    ways, pieces = batch_ways(mesh), {}
    for piece, devices in enumerate(mesh.devices.reshape(ways, -1)):
        for device in devices:
            pieces.setdefault(device.process_index, {})[piece] = None
    held = {process: tuple(found) for process, found in pieces.items()}
    shares = sorted(set(held.values()))
    if sum(map(len, shares)) != ways or len(set(map(len, shares))) > 1:
        found = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        expected = f"mesh.tensor that divides a process's {jax.local_device_count()} devices"
        raise InputError("mesh", found, f"{expected}, or is a multiple of them")
    me = jax.process_index()
    first = min(process for process in held if held[process] == held[me]) == me
    return Share(held[me], ways, shares.index(held[me]), len(shares), first)


def put_batch(mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch on its devices.

    Args:
      batch: arrays [B_local, ...], the rows `batch_share(mesh).rows(B)` of the global batch.

    Returns:
      Global arrays [B, ...], cut over `data` and `fsdp`.
    """
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)


def local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of an array that is cut as batches are, see `constrain_batch`."""
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def gather_to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array as numpy, on every process; all processes call it."""
    if isinstance(x, np.ndarray) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def from_all(x: np.ndarray) -> list[np.ndarray]:
    """What every process has under this name, bit for bit; first axes may differ in length.

    Args:
      x: [n, ...] of any dtype, also of 64 bits, which JAX's own arrays would round.
    """
    if jax.process_count() == 1:
        return [x]
    from jax.experimental import multihost_utils

    lengths = multihost_utils.process_allgather(np.int32(len(x)))
    padded = np.zeros((lengths.max(), *x.shape[1:]), x.dtype)
    padded[: len(x)] = x
    gathered = multihost_utils.process_allgather(padded.reshape(-1).view(np.uint8))
    shares = [np.asarray(share).view(x.dtype).reshape(padded.shape) for share in gathered]
    return [share[:length] for share, length in zip(shares, lengths, strict=True)]


def wait_for_all(name: str) -> None:
    """Returns once every process is here; `name` is the same on all of them."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Of a block in which no process waits for another: it fails on all if it fails on one.

    Without it the others would wait for the one that failed at their next common step.

    Raises:
      InputError: on the processes where it did not fail, naming one where it did.
    """
    try:
        yield
    except Exception:
        from_all(np.array([True]))
        raise
    failed = np.concatenate(from_all(np.array([False])))
    if failed.any():
        found = f"an error of process {int(np.argmax(failed))}"
        raise InputError("another process", found, "none; its log says what is wrong")


def broadcast_from_first(function: Callable[[], T]) -> T:
    """What a function returns on process 0, for all.

    Of what processes could see differently, such as files. The others do not even look: a network
    file system may remember for a while that a file was not there.

    Args:
      function: returns what JSON can hold.
    """
    if jax.process_count() == 1:
        return function()
    with all_or_none():
        encoded = json.dumps(function() if jax.process_index() == 0 else None)
    return json.loads(from_all(np.frombuffer(encoded.encode(), np.uint8))[0].tobytes())


def first_alone(function: Callable[[], T]) -> T:
    """Calls a function that writes files on process 0, and then, with all there, on the others.

    Raises:
      InputError: another process failed.
    """
    first = jax.process_index() == 0
    with all_or_none():
        result = function() if first else None
    with all_or_none():
        return result if first else function()


def constrain_batch(x: jax.Array) -> jax.Array:
    """Tells the compiler that the first axis of an activation is the batch.

    Without it the compiler may split activations like the weights they meet, and gather the
    batch instead of the weights. Outside a mesh (`jax.set_mesh`) it does nothing.
    """
    return jax.lax.with_sharding_constraint(x, P(BATCH_AXES)) if cut_by_batch(x) else x


def cut_by_batch(x: jax.Array) -> bool:
    """Whether there is a mesh around, and the first axis can be cut over `data` and `fsdp`."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and x.shape[0] % batch_ways(mesh) == 0


def gathered(table: jax.Array) -> jax.Array:
    """A small table whole on every device, for look-ups by rows that are cut over the batch.

    Left to itself the compiler would gather what was looked up instead: a batch of activations.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return table
    return jax.lax.with_sharding_constraint(table, P())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered_kernel(kernel: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """The kernel of a product whole on the devices of `fsdp`; its gradient is cut as it was.

    Left to itself the compiler may gather a kernel for each of the two products of the backward
    pass. A mere constraint would hold for the gradient too, which all devices would then sum whole.

    Args:
      axes: the logical names of the kernel's axes.
    """
    return _constrain_fsdp(kernel, axes, None)


gathered_kernel.defvjp(
    lambda kernel, axes: (gathered_kernel(kernel, axes), None),
    lambda axes, _, gradient: (_constrain_fsdp(gradient, axes, "fsdp"),),
)


def _constrain_fsdp(x: jax.Array, axes: tuple[str | None, ...], cut: str | None) -> jax.Array:
    """Says of the axes that `fsdp` cuts whether they are cut now, and nothing of the others."""
    ways = jax.sharding.get_abstract_mesh().shape["fsdp"]
    of_fsdp = [
        RULES.get(name) == "fsdp" and n % ways == 0 for name, n in zip(axes, x.shape, strict=True)
    ]
    spec = P(*(cut if own else P.UNCONSTRAINED for own in of_fsdp))
    return jax.lax.with_sharding_constraint(x, spec) if any(of_fsdp) else x


def shardings(mesh: jax.sharding.Mesh, boxed: object) -> object:
    """Shardings of a tree whose parameters carry logical axis names.

    Args:
      boxed: a tree of arrays or `jax.ShapeDtypeStruct`, those with names inside
        `nn.LogicallyPartitioned` (as `module.init` returns them); the rest is replicated.

    Returns:
      The unboxed tree's `NamedSharding`s. An axis that its mesh axis does not divide stays whole.
    """

    def sharding(leaf):
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return replicated(mesh)
        axes = []
        for name, size in zip(leaf.names, leaf.value.shape, strict=True):
            axis = RULES.get(name)
            axes.append(axis if axis and size % mesh.shape[axis] == 0 else None)
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(sharding, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def shapes(mesh: jax.sharding.Mesh, boxed: object) -> object:
    """The unboxed tree as `jax.ShapeDtypeStruct`s with their `shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(boxed),
        shardings(mesh, boxed),
    )


def place(arrays: object, layout: object) -> object:
    """A tree of numpy arrays on the mesh, as a tree of `jax.ShapeDtypeStruct`s lays it out."""

    def put(array, leaf):
        cut = lambda index: array[index].astype(leaf.dtype, copy=False)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, cut)

    return jax.tree.map(put, arrays, layout)
