"""Clusters on this machine: processes that run the command, with one virtual CPU device each."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bar_jax.metrics import classifier
from bar_jax.runtime.distributed import HEARTBEAT
from bar_jax.training import checkpoint
from tests import running

STEPS = 20
# The command, with another heartbeat. A busy machine may keep a sound process silent for many
# seconds, so only a test that waits until a lost one is missed takes a short one.
COMMAND = (
    "import sys; from bar_jax import main; from bar_jax.runtime import distributed;"
    " distributed.HEARTBEAT = {}; sys.exit(main.main(sys.argv))"
)
TIMES = ("per_second", "_seconds")  # how measured speeds end
FIELDS = {
    "data.image_size": 8,
    "model.generator.depth": 1,
    "model.generator.dropout": 0.1,
    "encode.batch_size": 128,
    "encode.shards": 3,  # not a multiple of the processes
    "sample.images_per_class": 3,  # nor are these of the batch
    "evaluate.batch_size": 128,
    "evaluate.metrics": ("class_accuracy", "classifier_fid"),
    "train_generator.evaluate_metrics": ("classifier_fid",),
} | {
    f"{stage}.{name}": value
    for stage in ("train_tokenizer", "train_generator")
    for name, value in {
        "steps": STEPS,
        "ema_decay": 0.99,
        "evaluate_every": STEPS,
        "save_every": STEPS // 2,
    }.items()
}
QUICKSTART = "configs/quickstart.py:tiny"
BITS = FIELDS | {
    "mesh.fsdp": 2,
    "model.tokenizer.encoder.depth": 1,
    "model.tokenizer.decoder.depth": 1,
    "model.generator.order.anneal_end_steps": STEPS,
    "sample.guidance_scale": 1.0,
    "sample.unmasking_schedule": (16,),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Holds the workdirs of these tests, and a classifier."""
    folder = tmp_path_factory.mktemp("processes")
    images = np.zeros((1, 8, 8, 3), np.float32)
    params = dict(classifier.Classifier(10, 16).init(jax.random.key(0), images)["params"])
    middle = {name: np.full(3, 127.5, np.float32) for name in ("mean", "std")}
    classifier.save(folder / "classifier.safetensors", jax.device_get(params | middle))
    return folder


@pytest.fixture(scope="session")
def start(folder) -> Callable[..., running.Run]:
    """Starts the command on a workdir: `start(NAME, **{FIELD: VALUE})`."""

    def start(name, processes=2, devices=1, heartbeat=HEARTBEAT, config=QUICKSTART, **fields):
        fields = (BITS if config == QUICKSTART else FIELDS) | fields
        fields["evaluate.weights.classifier"] = folder / "classifier.safetensors"
        python = ["-c", COMMAND.format(heartbeat)]
        command = running.command(folder / name, config, fields, python)
        return running.Run(command, folder / name, processes, devices)

    return start


@pytest.fixture(scope="session")
def pipelines(folder, start) -> Path:
    """Holds the workdirs `one` and `two` of a whole pipeline, made by as many processes."""
    for run in [start("one", processes=1, devices=2), start("two")]:
        run.succeed()
    return folder


@pytest.fixture(scope="session")
def one(pipelines) -> Path:
    """The workdir of a whole pipeline, made by one process with two devices."""
    return pipelines / "one"


@pytest.fixture(scope="session")
def two(pipelines) -> Path:
    """The same, made by two processes with a device each."""
    return pipelines / "two"


@pytest.fixture(scope="session")
def arrays() -> Callable[[Path, str], dict[str, np.ndarray]]:
    """Reads everything in a checkpoint of a part, by name: `arrays(workdir, part)`, the last."""

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def shapes(saved):
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.tree.map(shape, saved, is_leaf=lambda x: hasattr(x, "shape"))

    def read(workdir, part):
        names = ("params", "ema", "opt_state")
        with checkpoint.open_manager(workdir / part, keep=2) as manager:
            saved = manager.item_metadata(manager.latest_step())
            items = {name: ocp.args.StandardRestore(shapes(saved[name].tree)) for name in names}
            restored = manager.restore(manager.latest_step(), args=ocp.args.Composite(**items))
        leaves = jax.tree_util.tree_leaves_with_path({name: restored[name] for name in names})
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    return read


@pytest.fixture(scope="session")
def logged() -> Callable[[Path], dict[tuple, list[dict]]]:
    """Reads the logged numbers of a workdir by stage and step, without measured speeds."""

    def read(workdir):
        found: dict[tuple, list[dict]] = {}
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            entry = {k: v for k, v in json.loads(line).items() if not k.endswith(TIMES)}
            found.setdefault((entry.pop("stage"), entry.pop("step")), []).append(entry)
        return found

    return read
