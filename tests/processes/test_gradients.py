"""The gradient of one step over two processes is that of one, for each network that is trained."""

import math
import sys
from ast import literal_eval as literal
from pathlib import Path

import jax
import numpy as np
import pytest

from bar_jax.config import token_grid
from bar_jax.config.file import load_config
from bar_jax.generators import make_generator
from bar_jax.inspection.plan import generator_program
from bar_jax.pretrained.frozen import Networks
from bar_jax.runtime import distributed
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.tokenizers import cached_as
from bar_jax.training.optimizer import Durations
from bar_jax.training.step import init_state, stream_key
from bar_jax.training.tokenizer import make_program
from tests import running

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = {"tokenizer": "quickstart", "masked_bit": "quickstart", "xar": "basis/digits"}
# What is cut over more than a process: rows; parameters; parameters, but no rows.
LAYOUTS = {
    "data": dict(data=2, fsdp=1, tensor=1),
    "fsdp": dict(data=1, fsdp=2, tensor=1),
    "tensor": dict(data=1, fsdp=1, tensor=2),
    "one": dict(data=1, fsdp=1, tensor=1),
}
CASES = [
    [("xar", "tensor")],
    pytest.param(
        [("tokenizer", "data"), ("masked_bit", "fsdp"), ("masked_bit", "tensor")],
        marks=pytest.mark.exhaustive,
    ),
]


def gradient(network: str, layout: str) -> np.ndarray:
    """The first moment of AdamW after one step, that is (1 - b1) times the gradient, flat."""
    config = load_config(str(ROOT / f"configs/{NETWORKS[network]}.py:tiny"))
    config.data.image_size = 8
    sizes, rng = LAYOUTS[layout], np.random.default_rng(0)
    mesh = mesh_lib.make_mesh(**sizes, devices=jax.devices()[: math.prod(sizes.values())])
    if network == "tokenizer":
        size = config.train_tokenizer.batch_size
        batch = {"image": rng.integers(0, 256, (size, 8, 8, 3), np.uint8)}
        program = make_program(config, Networks(), Durations(steps=4), images=1)
    else:
        size, (kind, width) = config.train_generator.batch_size, cached_as(config)
        shape = (size, *token_grid(config), width)
        tokens = rng.integers(0, 2 if kind == "bits" else 256, shape, np.uint8)
        labels = rng.integers(0, 10, size, np.int32)
        batch = {"tokens": tokens.reshape(size, -1, width), "label": labels}
        program = generator_program(config, mesh, make_generator(config))
    rows = mesh_lib.batch_share(mesh).rows(size)
    with jax.set_mesh(mesh):
        make_state, shapes = init_state(program.init, jax.random.key(0), mesh)
        layouts = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        step = jax.jit(program.step(0), out_shardings=(layouts, mesh_lib.replicated(mesh)))
        own = mesh_lib.put_batch(mesh, {name: array[rows] for name, array in batch.items()})
        state, _ = step(make_state(), own, stream_key(0, "test"), program.frozen)
        leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
        moments = [leaf for path, leaf in leaves if ".mu" in jax.tree_util.keystr(path)]
        assert moments
        return np.concatenate([mesh_lib.gather_to_host(leaf).ravel() for leaf in moments])


def main(port: str, rank: str, path: str, cases: str) -> None:
    """One of two processes: writes the gradients of networks in layouts."""
    distributed.start(distributed.Cluster(f"localhost:{port}", 2, int(rank)))
    found = {f"{network} {layout}": gradient(network, layout) for network, layout in literal(cases)}
    if jax.process_index() == 0:
        np.savez(path, **found)


@pytest.mark.slow
@pytest.mark.parametrize("cases", CASES, ids=["usual", "others"])
def test_gradient_over_two_processes(cases, tmp_path):
    path = tmp_path / "two.npz"
    running.two(__file__, arguments=[str(path), str(cases)])
    of_two = np.load(path)
    for network, layout in cases:
        found, expected = of_two[f"{network} {layout}"], gradient(network, "one")
        assert np.linalg.norm(expected) > 1e-3
        error = np.linalg.norm(found - expected)
        assert error < 1e-5 * np.linalg.norm(expected), (network, layout)


if __name__ == "__main__":
    main(*sys.argv[1:])
