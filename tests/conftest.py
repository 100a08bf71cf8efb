"""Sets up every test run. Nothing may import jax before the environment is set here."""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import signal
import types
from pathlib import Path

# Eight devices on any machine, so that every test can use a mesh.
_DEVICES = "--xla_force_host_platform_device_count=8"
# Tests compile much and compute little: half of their time would be XLA's optimisation, and half of
# what is left its newer emitters of fused loops (jaxlib 0.10).
_FAST = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag
    _FAST += " --xla_cpu_use_fusion_emitters=false"
_XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _XLA_FLAGS:
    os.environ["XLA_FLAGS"] = f"{_XLA_FLAGS} {_DEVICES} {_FAST}".strip()
# Two threads for each: with fewer, devices that wait for each other may do so for ever.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # jax's SVD on CPU is about 20 times slower with more
# Absolute, and always set: test modules read it to list their cases.
os.environ["BAR_JAX_GOLDEN"] = os.path.abspath(
    os.environ.get("BAR_JAX_GOLDEN", Path(__file__).parent / "golden")
)

import jax  # noqa: E402
import pytest  # noqa: E402

# [B, N] + [N] is more often a bug than meant: broadcasting must be written out.
jax.config.update("jax_numpy_rank_promotion", "raise")


def _cache_folder() -> str:
    """Where compiled programs are kept for the next run, of another clone too.

    One folder per kind of processor: a program compiled for one may use instructions that another
    does not have.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    name = hashlib.sha256("\n".join([platform.machine(), *features]).encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(home) / "bar_jax" / "tests" / name)


# Three times faster from the second run on, with bitwise the same results.
jax.config.update("jax_compilation_cache_dir", _cache_folder())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_addoption(parser):
    """How much of the suite is run."""
    group = parser.getgroup("bar_jax")
    group.addoption("--fast", action="store_true", help="leave out what is marked slow")
    group.addoption("--all", action="store_true", help="run what is marked exhaustive too")


def pytest_collection_modifyitems(config, items):
    """Takes the tests that are asked for.

    Files with slow tests come first, so that at the end no worker waits long for another.
    """
    left_out = set() if config.option.all else {"exhaustive"}
    left_out |= {"slow"} if config.option.fast else set()
    is_out = lambda item: any(item.get_closest_marker(name) for name in left_out)
    config.hook.pytest_deselected(items=[item for item in items if is_out(item)])
    items[:] = [item for item in items if not is_out(item)]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


# Files that share what one of them has made: clusters, and a finished quickstart.
TOGETHER = (
    ("tests/processes/",),
    ("tests/test_pipeline.py", "tests/test_unified.py", "tests/data/test_published_tokens.py"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker takes a whole file, or all of those that share what one of them has made.

    `--dist loadgroup` would do the same, but pytest-xdist 3.8 finds no groups with pytest 9.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return next((files[0] for files in TOGETHER if file.startswith(files)), file)

    config.option.loadscopereorder = False  # the order is that of the collection, above
    return Scheduling(config, log)


@contextlib.contextmanager
def first_devices(count: int):
    """As if there were but these."""
    term = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:count])
        patch.setattr(jax, "device_count", lambda: count)
        yield
    signal.signal(signal.SIGTERM, term)  # the command takes it over


@pytest.fixture(scope="module")
def one_device():
    """The command on one device, which compiles fastest; runtime/test_mesh.py trains on eight."""
    with first_devices(1):
        yield


@pytest.fixture(scope="module")
def two_devices():
    """For what has to do with several."""
    with first_devices(2):
        yield


@pytest.fixture(scope="session")
def finished_quickstart(tmp_path_factory):
    """The tiny quickstart's finished pipeline: its `folder` and what it `printed`.

    Nothing may be written there. It ran on one device, with the umask of those who share their
    files with a group. Files that ask for it stand in TOGETHER.
    """
    from bar_jax.main import main

    folder, umask = tmp_path_factory.mktemp("quickstart") / "run", os.umask(0o002)
    command = ["main", "--config=configs/quickstart.py:tiny", f"--workdir={folder}"]
    try:
        with first_devices(1), contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(command) == 0
    finally:
        os.umask(umask)
    return types.SimpleNamespace(folder=folder, printed=json.loads(printed.getvalue()))


@pytest.fixture
def key() -> jax.Array:
    """The key that tests draw from."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the golden cases: BAR_JAX_GOLDEN, or tests/golden."""
    return Path(os.environ["BAR_JAX_GOLDEN"])


@pytest.fixture
def lowered_for_cuda(monkeypatch):
    """A function that lowers another one for an NVIDIA GPU, and gives the text: nothing is run.

    JAX asks the GPU, and cuDNN, what they are; here are their answers.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn
    from jax.sharding import AbstractDevice, AbstractMesh, AxisType

    from bar_jax.runtime.mesh import AXES

    for name, answer in (
        ("check_cudnn_version", lambda: 91000),
        ("check_compute_capability", lambda _: True),
        ("is_cuda_compute_capability_equal", lambda _: False),
    ):
        monkeypatch.setattr(cudnn, name, answer, raising=False)
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)

    def lower(function, *args):
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(function).trace(*args)
            return traced.lower(lowering_platforms=("cuda",)).as_text()

    return lower


@pytest.fixture
def published_config():
    """The config of the small published models in tests/golden/masked_bit.

    `bar_forward.safetensors` is the generator, `tokenizer.safetensors` the tokenizer: 64 px, 4 x 4
    tokens of 10 bits, 10 classes, random weights.
    """
    from bar_jax.config import default_config
    from bar_jax.config.presets import tiny

    config = tiny(default_config())
    config.data.image_size = 64
    config.model.tokenizer.update(dict(bits=10, patch_size=16))
    config.model.tokenizer.encoder.update(dict(width=48, depth=2, heads=4, mlp_width=80))
    config.model.tokenizer.encoder.update(dict(kind="siglip2", position_grid=7))
    config.model.tokenizer.decoder.update(dict(width=40, depth=4, heads=4, mlp_width=160))
    config.model.tokenizer.decoder.update(dict(predictor_layer=2, predictor_width=64))
    config.model.generator.update(dict(width=48, depth=2, heads=4, class_repeats=4))
    config.model.head.update(dict(width=64, depth=2))
    config.sample.update(dict(unmasking_schedule=(5, 5), labels=(1, 2), batch_size=2))
    return config


@pytest.fixture
def published_files(tmp_path) -> dict[str, Path]:
    """Copies, to be changed, of the files that `published_config` describes."""
    folder = Path(__file__).parent / "golden/masked_bit"
    names = {"generator": "bar_forward", "tokenizer": "tokenizer"}
    (tmp_path / "files").mkdir()
    return {
        part: Path(
            shutil.copy(folder / f"{name}.safetensors", tmp_path / "files" / f"{part}.safetensors")
        )
        for part, name in names.items()
    }
