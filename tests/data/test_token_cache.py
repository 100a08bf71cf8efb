import json
import os
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from bar_jax.data import (
    finish_cache,
    missing_shards,
    open_cache,
    plan_cache,
    shard_writer,
    token_batches,
    token_cache,
    token_eval_batches,
)
from bar_jax.runtime.errors import InputError

FIELDS = dict(
    fingerprint="bar_fsq-1234",
    dtype="bits",
    width=4,
    grid=(2, 3),
    num_classes=10,
    mirrored=True,
    preprocessing={"crop": "adm", "image_size": 8},
    num_examples=21,
    num_shards=4,
)


def tokens_of(index, bits=4, grid=(2, 3), mirrored=False):
    """What the tokenizer made of image `index`: `[N, K]`."""
    rng = np.random.default_rng([index, mirrored])
    return rng.integers(0, 2, (grid[0] * grid[1], bits), dtype=np.uint8)


def write_shard(plan, shard, skip=()):
    fields = plan.fields
    indices = [i for i in range(shard.start, shard.stop) if i not in skip]
    stacks = [
        np.stack([tokens_of(i, fields["width"], fields["grid"], mirrored) for i in indices])
        for mirrored in (False, True)
    ]
    with shard_writer(plan, shard) as write:
        half = len(indices) // 2
        for rows in (slice(0, half), slice(half, None)):
            write(
                [i % 10 for i in indices[rows]],
                indices[rows],
                stacks[0][rows],
                stacks[1][rows] if fields["mirrored"] else None,
            )


def make_cache(path, skip=(), **changes):
    plan = plan_cache(path, **FIELDS | changes)
    for shard in missing_shards(plan):
        write_shard(plan, shard, skip)
    finish_cache(plan)
    return path


@pytest.fixture
def path(tmp_path):
    return make_cache(tmp_path / "cache")


# --- round trip ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 10, 16, 64])
def test_tokens_come_back(tmp_path, bits):
    grid = (1, 5) if bits < 16 else (2, 3)  # 5 and 50 bits do not fill their bytes
    cache = open_cache(make_cache(tmp_path, width=bits, grid=grid))
    for i in (0, 7, 20):
        np.testing.assert_array_equal(cache[i]["tokens"], tokens_of(i, bits, grid))
        np.testing.assert_array_equal(cache[i]["tokens_mirrored"], tokens_of(i, bits, grid, True))


def test_labels_and_indices_come_back_without_the_damaged(tmp_path):
    cache = open_cache(make_cache(tmp_path, skip=(3, 20)))
    kept = [i for i in range(21) if i not in (3, 20)]
    examples = cache.read(range(len(cache)))
    np.testing.assert_array_equal(examples["index"], kept)
    np.testing.assert_array_equal(examples["label"], np.array(kept) % 10)


def test_a_cache_without_mirror_images(tmp_path):
    assert set(open_cache(make_cache(tmp_path, mirrored=False))[0]) == {"tokens", "label", "index"}


def test_a_cache_that_is_too_large_is_read_from_disk(path, monkeypatch):
    in_memory = open_cache(path).read([20, 0, 5])
    monkeypatch.setattr(token_cache, "IN_MEMORY_BYTES", 0)
    on_disk = open_cache(path).read([20, 0, 5])
    for name in in_memory:
        np.testing.assert_array_equal(on_disk[name], in_memory[name])


def test_a_cache_can_be_pickled(path):
    cache = pickle.loads(pickle.dumps(open_cache(path)))
    np.testing.assert_array_equal(cache[9]["tokens"], tokens_of(9))


def test_an_index_past_the_end(path):
    with pytest.raises(IndexError):
        open_cache(path)[21]


# --- real-valued tokens --------------------------------------------------------------------------


def numbers_of(dtype, count):
    """Tokens of `count` images and of their mirror images, [count, 6, 4] each."""
    rng = np.random.default_rng(0)
    if dtype == "uint8":
        return rng.integers(0, 256, (2, count, 6, 4), dtype=np.uint8)
    return rng.standard_normal((2, count, 6, 4), np.float32)


@pytest.fixture(params=["uint8", "float32"])
def numbers(request, tmp_path):
    """A cache of five images, and their tokens."""
    fields = FIELDS | dict(dtype=request.param, num_examples=5, num_shards=2)
    plan, tokens = plan_cache(tmp_path, **fields), numbers_of(request.param, 5)
    for shard in missing_shards(plan):
        rows = slice(shard.start, shard.stop)
        with shard_writer(plan, shard) as write:
            write([0] * (shard.stop - shard.start), range(*rows.indices(5)), *tokens[:, rows])
    finish_cache(plan)
    return tmp_path, tokens


@pytest.mark.parametrize("in_memory", [True, False])
def test_numbers_come_back(numbers, monkeypatch, in_memory):
    monkeypatch.setattr(token_cache, "IN_MEMORY_BYTES", 2**30 * in_memory)
    folder, (tokens, mirrored) = numbers
    read = open_cache(folder).read([4, 0, 2])
    assert read["tokens"].dtype == tokens.dtype
    np.testing.assert_array_equal(read["tokens"], tokens[[4, 0, 2]])
    np.testing.assert_array_equal(read["tokens_mirrored"], mirrored[[4, 0, 2]])


def test_numbers_are_mirrored_in_training(numbers):
    """Each row of a batch is an image's or its mirror image's, and both occur."""
    folder, tokens = numbers
    rows = take(20, open_cache(folder), batch_size=5)["tokens"].reshape(100, 6, 4)
    found = [np.flatnonzero((tokens.reshape(10, 6, 4) == row).all((1, 2))) for row in rows]
    assert set(map(len, found)) == {1} and set(np.concatenate(found)) == set(range(10))


def test_padding_of_numbers_is_zero(numbers):
    folder, (tokens, _) = numbers
    [batch] = token_eval_batches(open_cache(folder), batch_size=7)
    np.testing.assert_array_equal(batch["tokens"][:5], tokens)
    np.testing.assert_array_equal(batch["tokens"][5:], 0)


@pytest.mark.parametrize(
    "dtype, tokens",
    [
        ("float32", np.zeros((2, 6, 4), np.float64)),
        ("float32", np.zeros((2, 4, 6), np.float32)),
        ("float32", np.full((2, 6, 4), np.nan, np.float32)),
        ("uint8", np.zeros((2, 6, 4), np.float32)),
    ],
    ids=["float64", "shape", "not finite", "floats"],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, dtype, tokens):
    plan = plan_cache(tmp_path, **FIELDS | dict(dtype=dtype, mirrored=False))
    with pytest.raises(ValueError), shard_writer(plan, missing_shards(plan)[0]) as write:
        write([0, 0], [0, 1], tokens)


# --- caches of version 1 -------------------------------------------------------------------------


def make_version_1(path):
    """Turns a cache of bits into what version 1 wrote: other fields, the same records."""
    for file in (path / "plan.json", path / "header.json"):
        if file.exists():
            fields = json.loads(file.read_text())
            assert fields.pop("dtype") == "bits"
            fields |= {"version": 1, "bits": fields.pop("width")}
            file.write_text(json.dumps(fields))


def test_a_cache_of_version_1_opens(path):
    make_version_1(path)
    cache = open_cache(path, fingerprint="bar_fsq-1234", dtype="bits", width=4)
    np.testing.assert_array_equal(cache[9]["tokens"], tokens_of(9))


def test_another_cache_of_version_1_is_refused(path):
    make_version_1(path)
    with pytest.raises(InputError, match="width 4, expected 16"):
        open_cache(path, dtype="bits", width=16)


def test_an_unfinished_cache_of_version_1_is_finished(tmp_path):
    plan = plan_cache(tmp_path, **FIELDS)
    first, *_ = missing_shards(plan)
    write_shard(plan, first)
    make_version_1(tmp_path)
    cache = open_cache(make_cache(tmp_path))
    np.testing.assert_array_equal(cache[0]["tokens"], tokens_of(0))
    np.testing.assert_array_equal(cache[20]["tokens"], tokens_of(20))


# --- writing in parts ----------------------------------------------------------------------------


def test_shards_are_contiguous_ranges(tmp_path):
    ranges = [(s.start, s.stop) for s in missing_shards(plan_cache(tmp_path, **FIELDS))]
    assert ranges == [(0, 5), (5, 10), (10, 15), (15, 21)]


def test_a_killed_encoder_goes_on(tmp_path):
    plan = plan_cache(tmp_path, **FIELDS)
    first, second, *_ = missing_shards(plan)
    write_shard(plan, first)
    left = tmp_path / "tokens-00001-of-00004.array_record.tmp"
    left.write_bytes(b"half a shard")
    plan = plan_cache(tmp_path, **FIELDS)
    assert missing_shards(plan)[0] == second
    open_cache(make_cache(tmp_path))
    assert not left.exists()


def test_a_shard_that_failed_does_not_exist(tmp_path):
    plan = plan_cache(tmp_path, **FIELDS)
    with pytest.raises(KeyboardInterrupt), shard_writer(plan, missing_shards(plan)[0]):
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_going_on_keeps_the_number_of_shards(tmp_path):
    plan_cache(tmp_path, **FIELDS)
    assert len(missing_shards(plan_cache(tmp_path, **FIELDS | dict(num_shards=7)))) == 4


def test_there_are_no_more_shards_than_examples(tmp_path):
    assert len(missing_shards(plan_cache(tmp_path, **FIELDS | dict(num_shards=100)))) == 21


def test_an_older_name_of_the_same_tokens(tmp_path):
    """Such a cache is finished, and read."""
    plan = plan_cache(tmp_path, **FIELDS)
    write_shard(plan, missing_shards(plan)[0])
    newer = dict(fingerprint="newer", older=("bar_fsq-1234",))
    plan = plan_cache(tmp_path, **FIELDS | newer)
    assert len(missing_shards(plan)) == 3
    for shard in missing_shards(plan):
        write_shard(plan, shard)
    finish_cache(plan)
    assert len(open_cache(tmp_path, **newer)) == 21
    with pytest.raises(InputError, match="fingerprint 'bar_fsq-1234', expected 'newer'"):
        open_cache(tmp_path, fingerprint="newer", older=("other",))


@pytest.mark.parametrize(
    "change",
    [
        dict(fingerprint="bar_fsq-5678"),
        dict(mirrored=False),
        dict(preprocessing={"crop": "center", "image_size": 8}),
        dict(num_examples=22),
    ],
)
def test_shards_of_another_plan_are_never_mixed_in(tmp_path, change):
    plan_cache(tmp_path, **FIELDS)
    with pytest.raises(InputError, match=f"with {next(iter(change))} .*delete this folder"):
        plan_cache(tmp_path, **FIELDS | change)


def test_shards_without_a_plan_are_refused(tmp_path):
    (tmp_path / "tokens-00000-of-00004.array_record").write_bytes(b"whose?")
    with pytest.raises(InputError, match="shards without a plan.json"):
        plan_cache(tmp_path, **FIELDS)


def test_finishing_needs_every_shard(tmp_path):
    plan = plan_cache(tmp_path, **FIELDS)
    write_shard(plan, missing_shards(plan)[2])
    with pytest.raises(InputError, match="found 1 of 4 shards"):
        finish_cache(plan)


def test_a_cache_of_no_examples_is_refused(tmp_path):
    plan = plan_cache(tmp_path, **FIELDS)
    for shard in missing_shards(plan):
        with shard_writer(plan, shard):
            pass
    with pytest.raises(InputError, match="no example in any shard"):
        finish_cache(plan)


def try_to_write(tmp_path, **changes):
    plan = plan_cache(tmp_path, **FIELDS)
    arrays = dict(
        labels=[0, 9],
        indices=[0, 4],
        tokens=np.zeros((2, 6, 4), np.uint8),
        tokens_mirrored=np.zeros((2, 6, 4), np.uint8),
    )
    with shard_writer(plan, missing_shards(plan)[0]) as write:
        write(**arrays | changes)


def test_what_fits_is_written(tmp_path):
    try_to_write(tmp_path)
    assert len(list(tmp_path.glob("tokens-*.array_record"))) == 1


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_is_refused(tmp_path, label):
    with pytest.raises(InputError, match=f"label {label}, expected 0 to 9"):
        try_to_write(tmp_path, labels=[0, label])


@pytest.mark.parametrize(
    "change",
    [
        dict(indices=[0, 5]),
        dict(tokens=np.zeros((2, 6, 5), np.uint8)),
        dict(tokens=np.zeros((2, 6, 4), np.float32)),
        dict(tokens=np.full((2, 6, 4), 2, np.uint8)),
        dict(tokens_mirrored=None),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change):
    with pytest.raises(ValueError):
        try_to_write(tmp_path, **change)


# --- opening -------------------------------------------------------------------------------------


def test_the_expected_cache_opens(path):
    cache = open_cache(path, fingerprint="bar_fsq-1234", dtype="bits", width=4, num_classes=10)
    assert (cache.dtype, cache.width, cache.num_tokens) == ("bits", 4, 6)


@pytest.mark.parametrize(
    "needed, told",
    [
        (dict(fingerprint="other"), "fingerprint 'bar_fsq-1234', expected 'other'"),
        (dict(width=16), "width 4, expected 16"),
        (dict(dtype="float32"), "dtype 'bits', expected 'float32'"),
        (dict(grid=(3, 2)), r"grid \[2, 3\], expected \[3, 2\]"),
        (dict(num_classes=1000), "num_classes 10, expected 1000"),
    ],
)
def test_another_cache_is_refused(path, needed, told):
    with pytest.raises(InputError, match=told):
        open_cache(path, **needed)


def test_no_cache(tmp_path):
    with pytest.raises(InputError, match="no cache of tokens"):
        open_cache(tmp_path)


def test_an_unfinished_cache(tmp_path):
    plan_cache(tmp_path, **FIELDS)
    with pytest.raises(InputError, match="an unfinished cache"):
        open_cache(tmp_path)


def test_a_truncated_shard_is_named(path):
    shard = path / "tokens-00002-of-00004.array_record"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(InputError, match="tokens-00002-of-00004.array_record: found .* bytes"):
        open_cache(path)


def test_a_missing_shard_is_named(path):
    (path / "tokens-00002-of-00004.array_record").unlink()
    with pytest.raises(InputError, match="tokens-00002-of-00004.array_record: found 0 bytes"):
        open_cache(path)


@pytest.mark.parametrize("in_memory", [True, False])
def test_damaged_records_are_refused(path, monkeypatch, in_memory):
    monkeypatch.setattr(token_cache, "IN_MEMORY_BYTES", 2**30 * in_memory)
    shard = path / "tokens-00002-of-00004.array_record"
    content = bytearray(shard.read_bytes())
    packed = np.packbits(tokens_of(12)).tobytes()
    content[content.index(packed)] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=f"^{shard}: found (a )?damaged"):
        open_cache(path).read(range(21))


FAULTS = {
    "disappears": Path.unlink,
    "is cut off": lambda shard: os.truncate(shard, shard.stat().st_size // 2),
    "is emptied": lambda shard: os.truncate(shard, 0),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("begun", [True, False], ids=["after a read", "before it is read"])
def test_a_shard_that_changes_while_it_is_used(tmp_path, monkeypatch, fault, begun):
    """What is read is what was written, or the shard is named; 4 shards of 1 MB."""
    monkeypatch.setattr(token_cache, "IN_MEMORY_BYTES", 0)
    big = dict(width=64, grid=(16, 16), num_examples=1000, mirrored=False)
    cache = open_cache(make_cache(tmp_path, **big))
    shard = tmp_path / "tokens-00002-of-00004.array_record"
    if begun:
        cache.read([500])
    FAULTS[fault](shard)
    others = cache.read([0, 249, 250, 499, 750, 999])["index"]
    np.testing.assert_array_equal(others, [0, 249, 250, 499, 750, 999])
    try:
        found = cache.read([700])["tokens"][0]
    except InputError as error:
        assert str(error).startswith(f"{shard}: found a damaged shard (")
    else:
        assert begun  # it is open, or has been read
        np.testing.assert_array_equal(found, tokens_of(700, 64, (16, 16)))


def test_a_cache_of_a_later_format_is_refused(path):
    header = json.loads((path / "header.json").read_text())
    (path / "header.json").write_text(json.dumps(header | dict(version=3)))
    with pytest.raises(InputError, match="with version 3, expected 2"):
        open_cache(path)


# --- batches -------------------------------------------------------------------------------------


def take(count, cache, **changes):
    settings = dict(batch_size=6, seed=5, mirror=True) | changes
    batches = token_batches(cache, **settings)
    taken = list(islice(batches, count))
    batches.close()
    return {name: np.stack([batch[name] for batch in taken]) for name in taken[0]}


def index_and_mirror(bits):
    """Which image's tokens `[N, K]` are, and whether they are its mirror image's."""
    (found,) = [
        (i, mirrored)
        for i in range(21)
        for mirrored in (False, True)
        if np.array_equal(bits, tokens_of(i, mirrored=mirrored))
    ]
    return found


def test_token_batches_are_epochs_of_all_examples(path):
    batches = take(7, open_cache(path))  # 42 examples: two epochs
    found = [index_and_mirror(bits)[0] for bits in batches["tokens"].reshape(42, 6, 4)]
    assert sorted(found[:21]) == sorted(found[21:]) == list(range(21))
    np.testing.assert_array_equal(batches["label"].ravel(), np.array(found) % 10)


def test_half_of_the_tokens_are_mirrored(path):
    batches = take(50, open_cache(path))
    mirrored = [index_and_mirror(bits)[1] for bits in batches["tokens"].reshape(300, 6, 4)]
    assert 110 < sum(mirrored) < 190  # 150, give or take 4.6 standard deviations


def test_mirrors_are_drawn_anew_in_every_epoch(path):
    batches = take(14, open_cache(path))  # 84 examples: four epochs
    found = [index_and_mirror(bits) for bits in batches["tokens"].reshape(84, 6, 4)]
    assert len(set(found)) > 31  # 21 if each image were always the same, else 39


def test_without_mirror_no_tokens_are_mirrored(path):
    batches = take(7, open_cache(path), mirror=False)
    assert not any(index_and_mirror(bits)[1] for bits in batches["tokens"].reshape(42, 6, 4))


def test_token_batches_start_at_any_step(path):
    cache = open_cache(path)
    np.testing.assert_array_equal(
        take(3, cache, start_step=4)["tokens"], take(7, cache)["tokens"][4:]
    )


@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_make_up_the_same_token_batch(path, process_count):
    cache = open_cache(path)
    shares = np.arange(6).reshape(process_count, -1)
    parts = [take(5, cache, rows=rows)["tokens"] for rows in shares]
    whole = take(5, cache)["tokens"]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1).reshape(whole.shape), whole)


def test_mirroring_needs_mirror_images(tmp_path):
    cache = open_cache(make_cache(tmp_path, mirrored=False))
    with pytest.raises(InputError, match="data.mirror"):
        token_batches(cache, batch_size=6, seed=0, mirror=True)


def test_token_eval_batches_are_in_order_and_padded(path):
    batches = list(token_eval_batches(open_cache(path), batch_size=6))
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    np.testing.assert_array_equal(whole["index"], [*range(21), -1, -1, -1])
    np.testing.assert_array_equal(whole["mask"], [True] * 21 + [False] * 3)
    np.testing.assert_array_equal(whole["tokens"][:21], [tokens_of(i) for i in range(21)])
    np.testing.assert_array_equal(whole["tokens"][21:], 0)
    np.testing.assert_array_equal(whole["tokens_mirrored"][20], tokens_of(20, mirrored=True))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_label_that_is_no_class_ends_the_reading(path, monkeypatch, in_memory):
    """A compiled step would take it for the last one."""
    header = json.loads((path / "header.json").read_text())
    (path / "header.json").write_text(json.dumps(header | {"num_classes": 9}))
    if not in_memory:
        monkeypatch.setattr(token_cache, "IN_MEMORY_BYTES", 0)
    cache = open_cache(path)
    assert cache.read([8])["label"] == [8]
    with pytest.raises(InputError, match="found an example with label 9, expected labels from 0 t"):
        cache.read([8, 9])
