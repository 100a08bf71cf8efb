"""Clusters on this machine: processes that run the command, with virtual CPU devices each."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bar_jax.metrics import classifier
from bar_jax.runtime.distributed import HEARTBEAT
from bar_jax.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
TIMEOUT = 900  # seconds until a run counts as hung, on a machine that others keep busy too
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


class Run:
    """Processes that run the command on one workdir."""

    def __init__(
        self, folder: Path, workdir: Path, arguments: Sequence[str], processes, devices, heartbeat
    ):
        environment = os.environ | {
            # tensorboardX imports torch if it can, which takes longer than all else together.
            "PYTHONPATH": os.pathsep.join([str(folder / "no_torch"), str(ROOT)]),
            "XLA_FLAGS": re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"]),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [
            sys.executable,
            "-c",
            COMMAND.format(heartbeat),
            f"--workdir={workdir}",
            *arguments,
        ]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            command += [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
        started = time.monotonic_ns()
        self._logs = [folder / f"{workdir.name}.{started}.{i}.log" for i in range(processes)]
        self._processes = []
        # A shell's job in the background ignores Ctrl-C, and so do its processes.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for i, path in enumerate(self._logs):
            own = [f"--process_id={i}"] if processes > 1 else []
            with path.open("w") as log:
                self._processes.append(
                    subprocess.Popen([*command, *own], cwd=ROOT, env=environment, stdout=log,
                                     stderr=log)
                )  # fmt: skip

    def log(self, process: int = 0) -> str:
        """What a process has printed."""
        return self._logs[process].read_text()

    def send(self, sent: signal.Signals, process: int) -> None:
        """Sends a signal to one process."""
        self._processes[process].send_signal(sent)

    def end(self) -> list[int]:
        """Waits for the end; returns the exit statuses. What does not end is killed."""
        deadline = time.monotonic() + TIMEOUT
        try:
            return [p.wait(max(1, deadline - time.monotonic())) for p in self._processes]
        finally:
            for process in self._processes:
                process.kill()
                process.wait()

    def succeed(self, status: int = 0) -> None:
        """Waits for the end, which must be a good one: of all processes with this status."""
        statuses = self.end()
        logs = "\n".join(self.log(i)[-3000:] for i in range(len(statuses)))
        assert set(statuses) == {status}, f"{statuses}\n{logs}"

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Lets it work until a condition holds."""
        start = time.monotonic()
        while not condition():
            ended = [p.poll() is not None for p in self._processes]
            if any(ended) or time.monotonic() > start + TIMEOUT:
                for process in self._processes:
                    process.kill()
                pytest.fail(f"no {what}; ended {ended}, printed:\n{self.log()[-3000:]}")
            time.sleep(0.005)

    def until_step(self, stage: str, step: int) -> None:
        """Lets it work until it has made this step itself."""
        made = lambda: max(map(int, re.findall(rf"{stage} step (\d+)/", self.log())), default=0)
        self.until(lambda: made() >= step, f"step {step} of {stage}")


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Holds the workdirs of these tests, a classifier and what stands in for torch."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "no_torch").mkdir()
    (folder / "no_torch/torch.py").write_text("raise ImportError")
    images = np.zeros((1, 8, 8, 3), np.float32)
    params = dict(classifier.Classifier(10, 16).init(jax.random.key(0), images)["params"])
    middle = {name: np.full(3, 127.5, np.float32) for name in ("mean", "std")}
    classifier.save(folder / "classifier.safetensors", jax.device_get(params | middle))
    return folder


@pytest.fixture(scope="session")
def start(folder) -> Callable[..., Run]:
    """Starts the command on a workdir: `start(NAME, **{FIELD: VALUE})`."""

    def start(name, processes=2, devices=4, heartbeat=HEARTBEAT, config=QUICKSTART, **fields):
        fields = (BITS if config == QUICKSTART else FIELDS) | fields
        fields["evaluate.weights.classifier"] = folder / "classifier.safetensors"
        told = [f"--config.{field}={value}" for field, value in fields.items()]
        arguments = [f"--config={config}", *told]
        return Run(folder, folder / name, arguments, processes, devices, heartbeat)

    return start


@pytest.fixture(scope="session")
def pipelines(folder, start) -> Path:
    """Holds the workdirs `one` and `two` of a whole pipeline, made by as many processes."""
    for run in [start("one", processes=1, devices=8), start("two")]:
        run.succeed()
    return folder


@pytest.fixture(scope="session")
def one(pipelines) -> Path:
    """The workdir of a whole pipeline, made by one process with eight devices."""
    return pipelines / "one"


@pytest.fixture(scope="session")
def two(pipelines) -> Path:
    """The same, made by two processes with four devices each."""
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
