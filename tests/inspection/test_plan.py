"""Tests of bar_jax/inspection/plan.py."""

import importlib.util
import math

import jax
import pytest

from bar_jax.config import default_config
from bar_jax.config.file import load_config
from bar_jax.config.presets import tiny
from bar_jax.generators import make_generator
from bar_jax.inspection import plan
from bar_jax.inspection.model_flops import sampling_flops
from bar_jax.jobs import describe
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore

pytestmark = pytest.mark.slow
LARGE = 1024  # images: activations of one layer are more than all parameters of a tiny model


def _config(name="configs/masked_bit/bar_b.py"):
    return load_config(f"{name}:tiny")


def _parameter_bytes(config, step):
    make, init = {
        "generator": (make_generator, restore.init_generator),
        "tokenizer": (make_tokenizer, restore.init_tokenizer),
    }[step]
    shapes = jax.eval_shape(lambda: init(make(config), jax.random.key(0)))
    return 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    "name, step",
    [
        ("masked_bit/bar_b", "generator"),
        pytest.param("basis/xar_b", "generator", marks=pytest.mark.exhaustive),
        pytest.param("basis/mar_b", "generator", marks=pytest.mark.exhaustive),
        pytest.param("masked_bit/bar_b", "tokenizer", marks=pytest.mark.exhaustive),
    ],
)
def test_devices_send_parameters_and_no_activations(name, step):
    """With `fsdp` alone: gathers for the forward and the backward pass, and the gradient."""
    config = _config(f"configs/{name}.py")
    config.dtype = "float32"
    config[f"train_{step}"].update(batch_size=LARGE, remat=True)
    told = plan.compiled_step(config, make_mesh(1, 8, 1), step)["collectives"]
    assert told.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}
    parameters = _parameter_bytes(config, step)
    assert told["all-gather"]["bytes"] < 2 * parameters
    # The gradient, and sums such as a norm's.
    assert told["all-reduce"]["bytes"] < 1.1 * parameters


@pytest.fixture(scope="module")
def described():
    config = _config()
    config.mesh.update(dict(data=2, fsdp=2, tensor=2))
    config.describe.steps = ("generator",)
    return describe.run(config)


def test_memory_is_that_of_the_layout(described):
    """The step takes the state, the batch and a key, and gives the state back in its place."""
    memory = described["steps"]["generator"]["memory_bytes_per_device"]
    state = described["state_bytes_per_device"]["generator"]
    assert state < memory["arguments"] < state + 2**14
    assert memory["temporaries"] > 0
    rest = memory["total"] - memory["arguments"] - memory["temporaries"]
    assert 0 <= rest < 2**12  # metrics


def test_what_a_step_tells(described):
    told = described["steps"]["generator"]
    assert (told["batch_size"], told["accumulate"], told["remat"]) == (16, 1, False)
    assert told["compiled_for"] == "cpu"
    assert told["collectives"]["all-reduce"]["sent_bytes"] > 0
    assert told["work"]["flops_per_image"] == 8 * told["work"]["flops"] // 16
    assert 0 <= told["faults"]["copies_share"] < 1
    seconds = told["communication_seconds"]
    assert 0 <= seconds["H100"] <= seconds["TPU v5e"]


def test_a_sampler_is_compiled_in_two_parts(monkeypatch):
    """Tokens and pixels, each for the configured batch on the mesh; the cache's size as guided."""
    told = lambda lowered, mesh, images, cache=0: (lowered.as_text().split()[1], images, cache)
    monkeypatch.setattr(plan, "compile_and_tell", told)
    config = _config()
    config.sample.update(batch_size=8, guidance_scale=3.0)
    found = plan.compiled_sampler(config, make_mesh(2, 2, 2))
    assert found["batch_size"] == 8
    elements = 2 * 8 * make_generator(config).trunk.num_tokens * config.model.generator.width
    assert found["tokens"] == ("@jit_draw_tokens", 8, elements)
    assert found["pixels"] == ("@jit_pixels", 8, 0)
    config.sample.guidance_scale = 1.0
    assert plan.cache_elements(config) == elements // 2


@pytest.mark.parametrize("kind, cached", [("xar", True), ("causal", True), ("mar", False)])
def test_caches_of_hosts(kind, cached):
    config = _config(f"configs/basis/{kind}_b.py")
    assert (plan.cache_elements(config) > 0) == cached


@pytest.mark.slow
def test_a_compiled_sampler_computes_what_is_counted_by_hand():
    """One device; what XLA moves out of the loop over tokens is less than 5 %."""
    config = _config("configs/masked_bit/bar_b_4.py")
    config.dtype, config.sample.batch_size = "float32", 4
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    found = plan.compiled_sampler(config, mesh)["tokens"]
    params = restore.param_shapes(
        lambda key: restore.init_generator(make_generator(config), key), mesh
    )
    by_hand = sum(sampling_flops(config, params, 4).values())
    assert 0.95 * by_hand < found["work"]["flops"] <= by_hand
    assert found["faults"]["host_transfers"] == []


def test_virtual_devices():
    """As many as the tests have; more than JAX has started with are refused."""
    assert plan.devices("") == jax.devices()
    assert plan.devices("4") == jax.devices()[:4]
    with pytest.raises(InputError, match="device_count=512"):
        plan.devices("512")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_tpus_need_libtpu():
    with pytest.raises(InputError, match="^describe.devices: .*libtpu"):
        plan.devices("v5e:2x2")


@pytest.mark.skipif(
    # Where no plugin is installed there is no `jax_plugins` to look into either.
    all(map(importlib.util.find_spec, ("jax_plugins", "jax_plugins.xla_cuda12"))),
    reason="the plugin is installed",
)
def test_gpus_need_the_plugin():
    with pytest.raises(InputError, match="^describe.devices: .*plugin"):
        plan.devices("h100")


@pytest.mark.parametrize(
    "name, step, field",
    [
        ("masked_bit/bar_b", "generator", "train_generator.batch_size"),
        ("masked_bit/bar_b", "discriminator", "describe.steps"),
        ("basis/xar_b", "tokenizer", "describe.steps"),
        ("masked_bit/bar_b", "sampler", "sample.batch_size"),
    ],
)
def test_refused(name, step, field):
    """A batch that the mesh does not divide; a network that the config does not train."""
    config = _config(f"configs/{name}.py")
    if field.endswith("batch_size"):
        config.train_generator.batch_size = config.sample.batch_size = 12
    with pytest.raises(InputError, match=f"^{field}"):
        if step == "sampler":
            plan.compiled_sampler(config, make_mesh(8, 1, 1))
        plan.compiled_step(config, make_mesh(8, 1, 1), step)


def test_steps_are_validated():
    config = tiny(default_config())
    config.describe.steps = ("generater",)
    with pytest.raises(InputError, match="^describe.steps: found 'generater'"):
        from bar_jax.config.validation import validate

        validate(config)


def test_a_step_that_does_not_fit_is_told(monkeypatch):
    """What the compiler says, in one line, and the state's size all the same."""

    def refuse(self, compiler_options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20G of 16G hbm.\nAllocations:")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    told = plan.compiled_step(_config(), make_mesh(8, 1, 1), "generator")
    assert told["does_not_fit"] == "Used 20G of 16G hbm."
    assert told["state_bytes_per_device"]["parameters"] > 0
