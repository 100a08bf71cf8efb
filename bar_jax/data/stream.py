"""The endless stream of training examples, as a function of the position in it.

Position p of the stream is row `p % batch_size` of the global batch of step `p // batch_size`.
Which example stands there and what its augmentation draws depend on (seed, p) alone: not on the
process, the worker, the thread or the step at which the run was started. All of it is computed for
a whole batch at once; Grain's own shuffle, random_map and batch, which work example by example,
give the same guarantees at about 100 batches/s, and small token caches need many times that.
"""

import os
import signal
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache

import grain
import numpy as np
from absl import flags

# Decoding and resizing in Pillow release the interpreter lock, so threads do speed them up.
_THREADS = min(8, os.cpu_count() or 1)
_ENDLESS = 2**62


def positions(step: int, batch_size: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Positions of rows of one step's batch.

    A process asks for the rows that `mesh.put_batch` takes from it, so an example keeps its row,
    and what is drawn for it, whatever the number of processes.

    Args:
      rows: `[b]` integers; None for all of them.

    Returns:
      `[b]` int64.
    """
    rows = np.arange(batch_size) if rows is None else rows
    return step * batch_size + rows.astype(np.int64)


def examples_at(positions: np.ndarray, seed: int, size: int) -> np.ndarray:
    """Indices into a data set of `size` examples; each epoch is another permutation of all.

    A batch may span the end of one epoch and the start of the next: no example is dropped.
    """
    epochs, ranks = np.divmod(positions, size)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _epoch_order(seed, int(epoch), size)[ranks[here]]
    return indices


def uniforms(positions: np.ndarray, seed: int, name: str) -> np.ndarray:
    """One draw from [0, 1) per position, float64; streams of another `name` are independent."""
    return (_hash(positions, seed, zlib.crc32(name.encode())) >> 11) * 2.0**-53


@lru_cache(maxsize=4)  # threads that read ahead may be one epoch further
def _epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    # Sorting by hashes, which are distinct: the order stays the same with any version of NumPy,
    # which its own generators do not promise.
    return np.argsort(_hash(np.arange(size), seed, zlib.crc32(b"order"), epoch))


def _hash(counters: np.ndarray, *key: int) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood 2014): a bijection of uint64 for every key."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.zeros(1, np.uint64)  # arrays, since NumPy warns when scalars wrap around
    for part in key:
        state = _mix(state + golden + np.uint64(part % 2**64))
    return _mix(state + golden * (counters.astype(np.uint64) + np.uint64(1)))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def prefetch(
    read: Callable[[int], dict], start: int, stop: int | None = None, num_workers: int = 0
) -> Iterator[dict]:
    """Yields `read(start)`, `read(start + 1)`, ... in order, computed ahead by Grain.

    Args:
      read: makes one batch; picklable if there are workers.
      start: first step.
      stop: the step to end before, or None for an endless iterator.
      num_workers: processes that read; 0 reads in threads of this process.

    Returns:
      a generator; its `close()` stops threads and workers.
    """
    if start == stop:
        return
    steps = grain.MapDataset.range(start, _ENDLESS if stop is None else stop)
    # The buffers count whole batches. Workers are the parallel part where there are any.
    threads = 1 if num_workers else _THREADS
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    batches = steps.map(read).to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain hands the flags on to its workers
            flags.FLAGS.mark_as_parsed()
        workers = grain.multiprocessing.MultiprocessingOptions(
            num_workers=num_workers, per_worker_buffer_size=2
        )
        batches = batches.mp_prefetch(workers, _leave_stopping_to_the_run)
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()


def _leave_stopping_to_the_run(worker: int, workers: int) -> None:
    """Lets a worker go on after Ctrl-C or SIGTERM, which may reach all of a run's processes.

    Without its batches the run could not come to the step at which it saves; it closes its workers.
    """
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
