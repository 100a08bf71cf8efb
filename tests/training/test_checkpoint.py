"""Tests of bar_jax/training/checkpoint.py."""

import contextlib
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.training import checkpoint
from bar_jax.training.step import fresh_state, init_state

TX = optax.adam(0.1)


def init_params(key, width=8, dtype=jnp.float32):
    """A matrix that `fsdp` and `tensor` cut, and a vector."""
    kernel = jax.random.normal(key, (width, 16), dtype)
    return {
        "kernel": nn.LogicallyPartitioned(kernel, ("embed", "mlp")),
        "bias": jnp.arange(16.0),
    }


def fresh(layout=(8, 1, 1), ema=True, init=init_params):
    """A state at step 0 on a mesh, and its shapes."""
    mesh = mesh_lib.make_mesh(*layout)
    make, shapes = init_state(lambda k: fresh_state(init(k), TX, ema), jax.random.key(3), mesh)
    return make(), shapes


@functools.partial(jax.jit, donate_argnums=0)
def moved(state):
    """The state one step later; everything in it is another number then."""
    change = lambda tree: jax.tree.map(lambda x: x + 1, tree)  # noqa: E731
    ema = None if state.ema is None else jax.tree.map(lambda x: x - 1, state.ema)
    return state.replace(
        step=state.step + 1,
        params=change(state.params),
        ema=ema,
        opt_state=change(state.opt_state),
    )


def numpy(tree):
    return jax.tree.map(lambda x: np.array(x), tree)


@contextlib.contextmanager
def opened(folder, keep=3):
    """The manager; all saves are complete when the block ends."""
    with contextlib.closing(checkpoint.open_manager(folder, keep)) as manager:
        yield manager


def save(folder, state, results=None, keep=3):
    with opened(folder, keep) as manager:
        checkpoint.save(manager, state, {"seed": 5}, results or {})


def restore(folder, shapes):
    with opened(folder) as manager:
        return checkpoint.restore_state(manager, shapes)


@pytest.mark.parametrize("ema", [True, False])
def test_a_state_comes_back_as_it_was(tmp_path, ema):
    """Step, parameters, EMA (or none), optimiser state: values, dtypes and layout."""
    state, shapes = fresh((2, 2, 2), ema)
    state = moved(moved(state))
    save(tmp_path, state)
    found, _ = restore(tmp_path, shapes)
    assert int(found.step) == 2
    assert (found.ema is not None) == ema
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert jax.tree.map(lambda x: (x.dtype, x.sharding), found) == jax.tree.map(
        lambda x: (x.dtype, x.sharding), shapes
    )


def test_the_results_come_back(tmp_path):
    """And with `read_meta` also the config and the step."""
    state, shapes = fresh()
    save(tmp_path, moved(state), {"psnr": 26.25, "seconds": 0.1})
    assert restore(tmp_path, shapes)[1] == {"psnr": 26.25, "seconds": 0.1}
    meta = checkpoint.read_meta(tmp_path)
    assert (meta["step"], meta["config"]) == (1, {"seed": 5})


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("layout", [(8, 1, 1), (1, 8, 1), (1, 2, 4)])
def test_parameters_alone_are_restored_on_another_mesh(tmp_path, layout, ema):
    """The EMA where one was kept, else the parameters; laid out as the other mesh has it."""
    state = moved(fresh((2, 2, 2), ema)[0])
    save(tmp_path, state)
    shapes = fresh(layout, ema)[1].params
    params, step = checkpoint.restore_params(tmp_path, shapes)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, params, state.ema if ema else state.params)
    for name, leaf in params.items():
        assert leaf.sharding == shapes[name].sharding


def test_parameters_saved_alone(tmp_path):
    """They are step 0 of a stage, for evaluation; there is no state to go on from."""
    state, shapes = fresh((2, 2, 2))
    checkpoint.save_params(tmp_path, state.params, {"seed": 5})
    params, step = checkpoint.restore_params(tmp_path, fresh((1, 2, 4))[1].params)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    meta = checkpoint.read_meta(tmp_path)
    assert (step, meta["step"], meta["config"], meta["results"]) == (0, 0, {"seed": 5}, {})
    with pytest.raises(InputError, match="found no ema"):
        restore(tmp_path, shapes)


@pytest.mark.parametrize("wanted", ["state", "params"])
@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda p: p | {"bias": p["bias"][:8]},
            r"bias: found float32\[16\], expected float32\[8\]",
        ),
        (
            lambda p: p | {"bias": p["bias"].astype(jnp.bfloat16)},
            r"bias: found float32\[16\], expected bfloat16\[16\]",
        ),
        (lambda p: p | {"scale": p["bias"]}, "found no array scale, expected"),
        (lambda p: {"kernel": p["kernel"]}, "found an array bias, expected"),
    ],
    ids=["shape", "dtype", "missing", "surplus"],
)
def test_a_model_of_other_arrays_is_refused(tmp_path, wanted, change, message):
    """The message names the file and the array; nothing is cast or left out silently."""
    save(tmp_path, moved(fresh()[0]))
    shapes = fresh(init=lambda key: change(init_params(key)))[1]
    item = {"state": "params", "params": "ema"}[wanted]
    with pytest.raises(InputError, match=f"^{tmp_path}/1/{item}: {message}"):
        if wanted == "state":
            restore(tmp_path, shapes)
        else:
            checkpoint.restore_params(tmp_path, shapes.params)


def test_another_optimizer_is_refused(tmp_path):
    """Here: one that keeps no second moment."""
    save(tmp_path, moved(fresh()[0]))
    mesh = mesh_lib.make_mesh()
    shapes = init_state(
        lambda k: fresh_state(init_params(k), optax.sgd(0.1, 0.9), True), jax.random.key(0), mesh
    )[1]
    with pytest.raises(InputError, match=f"^{tmp_path}/1/opt_state: found an array "):
        restore(tmp_path, shapes)


def test_a_state_with_an_ema_needs_one_in_the_checkpoint(tmp_path):
    save(tmp_path, moved(fresh(ema=False)[0]))
    with pytest.raises(InputError, match=f"^{tmp_path}/1/ema: found no ema"):
        restore(tmp_path, fresh(ema=True)[1])


@pytest.mark.parametrize("name", [".", "nowhere"])
def test_no_checkpoint_is_told(tmp_path, name):
    """In an empty folder, and in one that is not there; neither is made."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"^{tmp_path / name}: found no complete checkpoint"):
        checkpoint.restore_params(tmp_path / name, fresh()[1].params)
    assert checkpoint.read_meta(tmp_path / name) is None
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("keep", [1, 2])
def test_older_checkpoints_are_deleted(tmp_path, keep):
    state = fresh()[0]
    with opened(tmp_path, keep) as manager:
        for _ in range(4):
            state = moved(state)
            checkpoint.save(manager, state, {}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"][-keep:]


@pytest.mark.parametrize("whole", [True, False], ids=["after another", "as the first"])
def test_leftovers_of_a_save_that_was_cut_off(tmp_path, whole):
    """They are passed over by readers, removed by the next training run, and written anew."""
    state, shapes = fresh()
    state = moved(state)
    if whole:
        save(tmp_path, state)
    left = [tmp_path / f"{step}.orbax-checkpoint-tmp" for step in (2, 7)]
    for folder in left:
        folder.mkdir()
        (folder / "half").write_bytes(b"cut of")
    meta = checkpoint.read_meta(tmp_path)
    assert (meta["step"] if whole else meta) == (1 if whole else None)
    assert all(folder.exists() for folder in left)  # a reader changes nothing
    with opened(tmp_path) as manager:
        assert manager.latest_step() == (1 if whole else None)
        checkpoint.save(manager, moved(state), {}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == (["1", "2"] if whole else ["2"])
    assert int(restore(tmp_path, shapes)[0].step) == 2


def test_of_a_step_that_is_there_the_results_alone_are_saved_again(tmp_path):
    """Arrays that were saved first stay; an evaluation may have been put off."""
    state, shapes = fresh()
    state = moved(state)
    save(tmp_path, state, {"seconds": 1.0})
    save(tmp_path, state.replace(params=init_params(jax.random.key(9))), {"psnr": 2.0})
    found, results = restore(tmp_path, shapes)
    assert results == {"psnr": 2.0}
    chex.assert_trees_all_equal(numpy(found.params), numpy(state.params))


def test_a_state_may_be_donated_while_it_is_saved(tmp_path):
    """Each checkpoint holds the numbers of its step, though the next steps reuse their memory."""
    mesh = mesh_lib.make_mesh(2, 2, 2)
    wide = functools.partial(init_params, width=2**15)
    make, shapes = init_state(lambda k: fresh_state(wide(k), TX, True), jax.random.key(0), mesh)
    state = make()
    expected = {}
    with opened(tmp_path) as manager:
        for step in range(1, 10):
            state = moved(state)
            if step % 3 == 0:
                expected[step] = numpy(state.params), numpy(state.ema), numpy(state.opt_state)
                checkpoint.save(manager, state, {}, {})
    for step, numbers in expected.items():
        only = tmp_path.parent / f"{tmp_path.name}-{step}"
        only.mkdir()
        (tmp_path / str(step)).rename(only / str(step))
        found, _ = restore(only, shapes)
        jax.tree.map(
            np.testing.assert_array_equal, (found.params, found.ema, found.opt_state), numbers
        )
