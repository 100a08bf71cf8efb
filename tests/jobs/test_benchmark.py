"""Tests of bar_jax/jobs/benchmark.py: that it runs and that its rates follow from its seconds."""

import json
import statistics
import types

import jax
import pytest

from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.config.validation import validate
from bar_jax.inspection import timing
from bar_jax.jobs import benchmark, check_devices
from bar_jax.runtime.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _two_devices(two_devices):
    """Tests here run the job."""


@pytest.fixture(scope="module")
def measured():
    config = tiny(default_config())
    config.mesh.update(dict(data=1, fsdp=2))
    config.sample.batch_size = 4
    config.benchmark.update(dict(parts=("sampling", "training"), repeats=3))
    return benchmark.run(config)


@pytest.mark.parametrize("part, batch", [("sampling", 4), ("training", 16)])
def test_rates_are_those_of_the_median(measured, part, batch):
    told = measured[part]
    median = statistics.median(told["seconds"])
    assert len(told["seconds"]) == 3
    assert told["images_per_second"] == pytest.approx(batch / median, rel=1e-3)
    flops = told["flops_per_image"] * batch / median
    assert told["flops_per_second"] == pytest.approx(flops, rel=1e-3)


@pytest.mark.parametrize(
    "part, name", [("sampling", "fraction_of_peak"), ("training", "model_flops_utilisation")]
)
def test_utilisation_is_of_the_peak_of_all_devices(measured, part, name):
    assert measured["devices"] == 2
    expected = measured[part]["flops_per_second"] / measured["peak_flops"][part]
    assert measured[part][name] == pytest.approx(expected, rel=1e-3)


def test_decoding_is_timed_apart(measured):
    told = measured["sampling"]
    both = statistics.median(told["seconds"]) + statistics.median(told["decode_seconds"])
    assert told["images_per_second_decoded"] == pytest.approx(4 / both, rel=1e-3)


def test_memory_holds_the_parameters_at_least(measured):
    """Of a device, at the layout (1, 2, 1): at least half of the float32 parameters."""
    config = tiny(default_config())
    config.job = "describe"
    from bar_jax.jobs import describe

    parameters = describe.run(config)["parameters"]["generator_total"]
    for part, copies in (("sampling", 1), ("training", 3)):  # Adam's moments
        assert measured[part]["memory_bytes_per_device"] > copies * parameters * 4 / 2


@pytest.mark.parametrize("kind", ["masked_bit", "bit", "linear"])
def test_memory_of_a_head_holds_its_parameters_and_their_gradient(kind):
    config = tiny(default_config())
    config.update_from_flattened_dict({"model.head.kind": kind, "benchmark.repeats": 1})
    config.benchmark.parts = ("head",)
    told = benchmark.run(config)["head"]
    head = {"bit": 2 * 16 * 17, "linear": 2**16 * 17}.get(kind, told["parameters"])
    assert (told["kind"], told["bits_per_token"], told["batch_tokens"]) == (kind, 16, 16 * 16)
    assert told["parameters"] == head
    assert told["memory_bytes"] > 2 * 4 * told["parameters"]


@pytest.mark.exhaustive
def test_parts_of_the_tokenizer():
    """Rates follow from seconds; a loss of pixels alone has no discriminator to time."""
    config = tiny(default_config())
    config.benchmark.update(dict(parts=("tokenizer", "tokenizer_training"), repeats=1))
    told = benchmark.run(config)
    assert told["tokenizer_training"].keys() == {"tokenizer"}
    for part, batch in (
        (told["tokenizer"]["encode"], 16),
        (told["tokenizer"]["decode"], 16),
        (told["tokenizer_training"]["tokenizer"], 16),
    ):
        [seconds] = part["seconds"]
        assert part["images_per_second"] == pytest.approx(batch / seconds, rel=1e-3)
        rate = part["flops_per_image"] * batch / seconds
        assert part["flops_per_second"] == pytest.approx(rate, rel=1e-3)
    # A step goes through both, forward and backward, which is three times the forward pass; and
    # through the attention, a small part here, once more (`nn.remat`). Through all of it once more
    # would be four times.
    encode, decode = (told["tokenizer"][way]["flops_per_image"] for way in ("encode", "decode"))
    step = told["tokenizer_training"]["tokenizer"]["flops_per_image"]
    assert 2.5 * (encode + decode) < step < 3.5 * (encode + decode)


def test_batches_are_measured_one_after_another():
    """Of the bundled digits, which need neither a device nor a compiler."""
    config = tiny(default_config())
    config.benchmark.update(dict(parts=("input",), batches=(8, 4), repeats=2))
    told = benchmark.run(config)["input"]
    assert [each["batch_size"] for each in told["batches"]] == [8, 4]
    fastest = max(told["batches"], key=lambda each: each["images_per_second"])
    assert told["images_per_second"] == fastest["images_per_second"]
    for each in told["batches"]:
        expected = 2 * each["batch_size"] / each["seconds"]
        assert each["images_per_second"] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("batches, found", [((8, 5), "5"), ((0,), "0"), ((2.5,), "2.5")])
def test_a_batch_that_cannot_be_is_refused(batches, found):
    config = tiny(default_config())
    config.job, config.benchmark.batches = "benchmark", batches
    with pytest.raises(InputError, match=f"^benchmark.batches: found {found}, expected"):
        validate(config)
        check_devices(config)


def test_prints_as_json(measured):
    assert json.loads(json.dumps(measured)) == measured


@pytest.mark.parametrize(
    "kind, dtype, expected",
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H200", "float32", 495e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5", "bfloat16", 459e12),
    ],
)
def test_peak_of_a_known_device(kind, dtype, expected):
    device = types.SimpleNamespace(device_kind=kind)
    assert timing.peak_flops(device, dtype) == (expected, "data sheet")


def test_peak_of_an_unknown_device_is_measured():
    flops, source = timing.peak_flops(jax.devices()[0], "float32")
    assert flops > 1e8 and source.startswith("measured")
