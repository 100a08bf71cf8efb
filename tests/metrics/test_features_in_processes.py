"""Features over two real processes (gloo, 2 CPU devices each) are those of one process."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.data import eval_batches
from bar_jax.data.image_sets import ImageArray
from bar_jax.metrics.features import FeatureNetwork, extract
from bar_jax.metrics.frechet import frechet_distance
from bar_jax.metrics.moments import gaussian
from bar_jax.runtime import mesh as mesh_lib
from tests import running

pytestmark = pytest.mark.slow
COUNT, SIZE = 37, 8


def images(seed):
    shape = (COUNT, SIZE, SIZE, 3)
    pixels = np.random.default_rng(seed).integers(0, 200 + 40 * seed, shape, np.uint8)
    return ImageArray(pixels, np.arange(COUNT) % 7, "set", 7, True)


def show(kernel, images):
    features = jnp.tanh(images.reshape(len(images), -1) / 255 @ kernel)
    return {"pool": features, "logits": features[:, :3]}


def measure():
    """What a job does: both sets through a network; numbers that any difference would change."""
    kernel = np.random.default_rng(2).normal(size=(SIZE * SIZE * 3, 6)).astype(np.float32)
    mesh, network = mesh_lib.make_mesh(), FeatureNetwork("net", show, kernel, "", "")
    found = []
    for seed in (0, 1):
        batches = eval_batches(
            images(seed), image_size=SIZE, crop="adm", batch_size=8,
            rows=mesh_lib.batch_share(mesh).rows(8),
        )  # fmt: skip
        with jax.set_mesh(mesh):
            outputs = dict(moments=["net/pool"], rows=["net/logits"])
            found.append(
                extract(mesh, [network], batches, keep=np.arange(COUNT) % 3 > 0, **outputs)
            )
    a, b = (gaussian(features.moments["net/pool"]) for features in found)
    rows = found[1].rows["net/logits"].astype(float)
    return {
        "distance": frechet_distance(a, b),
        "count": found[0].count,
        "rows": rows.tolist(),
        "labels": found[1].labels.tolist(),
    }


@pytest.fixture(scope="module")
def one_process():
    return measure()


def test_two_processes_find_what_one_does(one_process):
    flags = "--xla_force_host_platform_device_count=2"
    printed = running.two(__file__, XLA_FLAGS=flags)
    found = [json.loads(output.splitlines()[-1]) for output in printed]
    assert found[0] == found[1]  # the same on every process, to the last bit
    assert found[0]["distance"] == pytest.approx(one_process["distance"], rel=1e-6)
    assert (found[0]["count"], found[0]["labels"]) == (COUNT, one_process["labels"])
    np.testing.assert_allclose(found[0]["rows"], one_process["rows"], rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    port, rank = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(rank))
    print(json.dumps(measure()))
