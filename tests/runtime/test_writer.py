"""Tests of bar_jax/runtime/writer.py."""

import json
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from bar_jax.runtime import writer as writer_module
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.writer import MetricsWriter, update_summary


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _log(folder, stage, steps, start=0):
    writer = MetricsWriter(folder, stage, start)
    for step in steps:
        writer.scalars(step, {"loss": step / 2})
    writer.close()


def _events(folder):
    """TensorBoard's records: a length of 8 bytes, its checksum of 4, the event, its checksum."""
    for file in sorted(folder.glob("events*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_a_line_per_logged_step(tmp_path):
    _log(tmp_path, "train_tokenizer", [1, 2])
    assert _lines(tmp_path) == [
        {"stage": "train_tokenizer", "step": 1, "loss": 0.5},
        {"stage": "train_tokenizer", "step": 2, "loss": 1.0},
    ]


def test_going_on_forgets_later_lines_of_its_own_stage(tmp_path):
    _log(tmp_path, "train_tokenizer", [1, 2, 3])
    _log(tmp_path, "train_generator", [1, 2, 3])
    _log(tmp_path, "train_generator", [3], start=2)
    steps = [(line["stage"], line["step"]) for line in _lines(tmp_path)]
    assert steps == [
        *(("train_tokenizer", step) for step in (1, 2, 3)),
        *(("train_generator", step) for step in (1, 2, 3)),
    ]


def test_going_on_drops_a_line_that_was_cut_off(tmp_path):
    _log(tmp_path, "train_generator", [1])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train_generator", "st')
    _log(tmp_path, "train_generator", [2], start=1)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2]


def test_tensorboard_has_the_numbers(tmp_path):
    _log(tmp_path, "train_generator", [1, 2])
    found = [
        (event.step, value.tag, value.simple_value)
        for event in _events(tmp_path / "tensorboard/train_generator")
        for value in event.summary.value
    ]
    assert found == [(1, "loss", 0.5), (2, "loss", 1.0)]


def test_tensorboard_has_the_pictures(tmp_path):
    writer = MetricsWriter(tmp_path, "train_generator")
    writer.image(3, "samples", np.zeros((4, 6, 3), np.uint8))
    writer.close()
    found = [
        (event.step, value.tag, value.image.height, value.image.width)
        for event in _events(tmp_path / "tensorboard/train_generator")
        for value in event.summary.value
    ]
    assert found == [(3, "samples", 4, 6)]


def test_summary_adds_and_replaces(tmp_path):
    update_summary(tmp_path, {"a": 1, "b": 2})
    assert update_summary(tmp_path, {"b": 3, "c": 4}) == {"a": 1, "b": 3, "c": 4}


def test_summary_file_is_what_was_returned(tmp_path):
    returned = update_summary(tmp_path, {"a": 1, "b": [2]})
    assert json.loads((tmp_path / "summary.json").read_text()) == returned


def test_a_damaged_summary_is_refused_and_kept(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text('{"a": ')
    with pytest.raises(InputError, match="summary.json: found an unreadable file"):
        update_summary(tmp_path, {"b": 1})
    assert path.read_text() == '{"a": '


def test_a_list_of_numbers_is_a_histogram(tmp_path):
    writer = MetricsWriter(tmp_path, "train_tokenizer")
    writer.histogram(3, "bit_usages", [0.25, 0.5, 1.0])
    writer.close()
    [histogram] = [
        value.histo
        for event in _events(tmp_path / "tensorboard" / "train_tokenizer")
        for value in event.summary.value
    ]
    assert (histogram.num, histogram.min, histogram.max) == (3, 0.25, 1.0)


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard/train_tokenizer"])
def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch, name):
    """And does not hang: every event is written by the time the call returns, or raises."""
    writer = MetricsWriter(tmp_path, "train_tokenizer")
    full = open("/dev/full", "wb" if name.startswith("tensorboard") else "w")
    if name == "metrics.jsonl":
        monkeypatch.setattr(writer, "_lines", full)
    else:
        monkeypatch.setattr(writer._events._file._py_recordio_writer, "_writer", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / name}'"):
        for step in range(100):
            writer.scalars(step, {"loss": 1.0})
    with pytest.raises(OSError):  # a buffer is still full
        full.close()


def test_lines_are_closed_now_and_then(tmp_path, monkeypatch):
    """With the first one and whenever enough time has passed: a mounted bucket shows no others."""
    writer = MetricsWriter(tmp_path, "train_tokenizer")
    closed = []
    for step, seconds in enumerate((120, 120, 0)):
        monkeypatch.setattr(writer_module, "FLUSH_SECONDS", seconds)
        before = writer._lines
        writer.scalars(step, {"loss": 1.0})
        closed.append(before.closed)
    writer.close()
    assert closed == [True, False, True]
    assert [line["step"] for line in _lines(tmp_path)] == [0, 1, 2]


def test_a_run_that_goes_on_tells_tensorboard(tmp_path):
    """Which then forgets the events from there on."""
    _log(tmp_path, "train_tokenizer", [4], start=3)
    events = list(_events(tmp_path / "tensorboard/train_tokenizer"))
    assert [event.step for event in events if event.HasField("session_log")] == [3]
