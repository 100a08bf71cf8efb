"""Tests of configs/: every file makes a valid config and models that fit together.

With --all each trains its `:tiny` size.
"""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from bar_jax.config import default_config, flatten, token_grid
from bar_jax.config.file import load_config
from bar_jax.config.validation import validate
from bar_jax.generators import make_generator
from bar_jax.generators.kind import written_width
from bar_jax.inspection import plan
from bar_jax.inspection.model_flops import count
from bar_jax.jobs import describe
from bar_jax.pretrained import published
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import make_tokenizer, real_valued, sequence_grid, token_width
from bar_jax.training import generator as generator_lib
from bar_jax.training import loop, optimizer, restore
from bar_jax.training.optimizer import decays
from bar_jax.training.tokenizer import check_discriminator
from bar_jax.visualize import figures

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(file.relative_to(ROOT).as_posix() for file in ROOT.glob("configs/**/*.py"))
# Millions of parameters that the files state: (tokenizer, generator).
STATED = {
    "configs/folder.py": (14, 49),
    "configs/masked_bit/bar_b.py": (None, 415),
    "configs/masked_bit/bar_b_2.py": (None, 415),
    "configs/masked_bit/bar_b_4.py": (None, 416),
    "configs/masked_bit/bar_l.py": (None, 1100),
    "configs/masked_bit/bar_l_512.py": (None, 1100),
}
# What the published generators have: parameters; bits of an image; then of the sequence that is
# predicted: tokens, bits of each, and length with a start vector and 32 copies of the class.
PUBLISHED = {
    "bar_b": (415_322_158, 16 * 16 * 16, 256, 16, 289),
    "bar_b_2": (415_076_098, 16 * 16 * 16, 64, 64, 97),
    "bar_b_4": (415_752_223, 16 * 16 * 16, 16, 256, 49),
    "bar_l": (1_107_798_990, 16 * 16 * 16, 256, 16, 289),
    "bar_l_512": (1_110_727_993, 32 * 32 * 10, 1024, 10, 1057),
}


@pytest.fixture(params=CONFIGS)
def path(request):
    return request.param


def _shapes(config):
    """Shapes of the parameters of both parts, nothing allocated."""
    tokenizer, generator = make_tokenizer(config), make_generator(config)
    return (
        jax.eval_shape(lambda k: restore.init_tokenizer(tokenizer, k), jax.random.key(0)),
        jax.eval_shape(lambda k: restore.init_generator(generator, k), jax.random.key(0)),
    )


@pytest.mark.parametrize("size", ["", ":tiny"])
def test_is_valid(path, size):
    config = load_config(f"{ROOT / path}{size}")
    if path.endswith("_ft.py"):
        config.init_from = "runs/other"  # as the command in its docstring has it
    validate(config)


def test_tiny_is_tiny(path):
    """Whatever the file sets, nothing of it is left large."""
    fields = dict(flatten(load_config(f"{ROOT / path}:tiny")))
    sizes = {name: value for name, value in fields.items() if name.endswith((".width", ".depth"))}
    assert max(sizes.values()) <= 32, sizes
    assert [fields[f"train_{part}.steps"] for part in ("tokenizer", "generator")] == [2, 2]


@pytest.mark.parametrize("size", ["", ":tiny"])
def test_its_schedules_fit_its_training(path, size, caplog):
    """Nothing is told of what is run as it is written."""
    config, images = load_config(f"{ROOT / path}{size}"), 1_281_167
    for stage in ("train_tokenizer", "train_generator"):
        durations = optimizer.durations(stage, config[stage], images)
        loop.warn_of_schedule(stage, config[stage], durations)
    if config.model.basis.kind == "random":
        anneal = generator_lib.anneal_steps(config, images)
        generator_lib.warn_of_order(durations.steps, *anneal)
    section = config.train_tokenizer
    steps = optimizer.durations("train_tokenizer", section, images).steps
    check_discriminator(section, images, steps)
    assert not caplog.messages


def test_says_how_it_is_run(path):
    """Its docstring gives the command, with its own name."""
    assert f"--config={path} --workdir=runs/" in (ROOT / path).read_text()


@pytest.mark.slow
def test_shapes(path):
    """The tokens that the tokenizer makes are those that the generator takes."""
    config = load_config(str(ROOT / path))
    tokenizer, generator = make_tokenizer(config), make_generator(config)
    sizes = dict(zip(("tokenizer", "generator"), map(count, _shapes(config)), strict=True))
    rows, columns = sequence_grid(config)
    shuffled = rows * columns // config.model.generator.patch_size**2
    assert tokenizer.grid == token_grid(config)
    assert generator.token_grid == (rows, columns)
    if real_valued(config):
        assert (generator.host.length, generator.host.channels) == (
            shuffled,
            token_width(config) * config.model.generator.patch_size**2,
        )
    else:
        trunk = generator.trunk
        assert (trunk.num_tokens, trunk.bits) == (shuffled, written_width(config))
    for part, stated in zip(sizes, STATED.get(path, (None, None)), strict=True):
        if stated:
            assert sizes[part] == pytest.approx(stated * 1e6, rel=0.05), part


# Of the other architectures tests/test_pipeline.py, test_unified.py and jobs/test_basis.py train
# one each, from images to samples.
USUAL = "configs/basis/mar_b.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        path if path == USUAL else pytest.param(path, marks=pytest.mark.exhaustive)
        for path in CONFIGS
    ],
)
def test_tiny_is_trained_for_two_steps(path):
    """Each network that it trains: the loss is finite, and the parameters move."""
    config, rng = load_config(f"{ROOT / path}:tiny"), np.random.default_rng(0)
    steps = () if real_valued(config) else ("tokenizer",)
    steps += () if config.job == "train_tokenizer" else ("generator",)
    mesh = make_mesh(devices=jax.devices()[:1])
    weights = lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype)
    zeros = lambda leaf: np.zeros(leaf.shape, leaf.dtype)
    for name in steps:
        step, (state, batch, _, frozen) = plan.step_and_shapes(config, mesh, name)
        params = jax.tree.map(weights, state.params)
        state = jax.tree.map(zeros, state).replace(params=params)
        step, key = jax.jit(step), jax.random.key(0)
        with jax.set_mesh(mesh):
            for _ in range(2):
                state, metrics = step(state, jax.tree.map(zeros, batch), key, frozen)
        assert np.isfinite(metrics["loss"]), name
        moved = jax.tree.map(lambda a, b: np.any(a != b), state.params, params)
        assert any(jax.tree.leaves(moved)), name


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_is_the_published_generator(name):
    config = load_config(f"{ROOT}/configs/masked_bit/{name}.py")
    described = describe.run(config)
    fields = ("bit_budget", "generator_tokens", "generator_bits_per_token", "sequence_length")
    found = described["parameters"]["generator_total"], *(described[field] for field in fields)
    assert found == PUBLISHED[name]


# Parameters of the published hosts; a config with a basis has its 256 x 256 numbers more.
HOSTS = {
    "xar_b": 172_638_224,
    "xar_l": 608_397_968,
    "xar_h": 1_186_024_096,
    "mar_b": 207_924_768,
    "mar_l": 478_326_304,
    "mar_h": 942_403_104,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("suffix, more", [("_host", 0), ("", 256 * 256)])
def test_is_the_published_host(name, suffix, more):
    config = load_config(f"{ROOT}/configs/basis/{name}{suffix}.py")
    generator = make_generator(config)
    shapes = jax.eval_shape(lambda k: restore.init_generator(generator, k), jax.random.key(0))
    assert count(shapes) == HOSTS[name] + more


@pytest.mark.parametrize("name", ["xar_b", "mar_b"])
def test_weight_decay_acts_on_what_published_code_has_it_act_on(name):
    """Matrices, embeddings and positions; not on MAR's diffusion head, nor on A."""
    config = load_config(f"{ROOT}/configs/basis/{name}.py:tiny")
    params = published._params(config, "generator")
    mask = decays(params, config.train_generator.optimizer.no_decay)
    told = jax.tree.map(lambda m, p: np.full(p.shape, m, np.float32), mask, params)
    found = published.state_dict(config, "generator", told)
    buffers = [n for n in found if ".rope." in n or n == "mask"]
    assert not found.pop("basis").any()
    for tensor, value in found.items():
        if tensor not in buffers:
            decaying = value.ndim > 1 and "diffloss" not in tensor
            np.testing.assert_array_equal(value, float(decaying), err_msg=tensor)


# What the published tokenizers have: trained parameters, all, those that encode, that decode.
TOKENIZERS = {
    "bar_fsq": (723_525_716, 1_151_413_780, 412_685_568, 303_382_356),
    "bar_fsq_ft": (312_020_948, 1_151_413_780, 412_685_568, 303_382_356),
    "bar_fsq_512": (724_299_086, 1_152_187_150, 412_672_506, 304_162_644),
}
PER_BIT = 1152 + 1 + 1024  # of the quantizer: a bit's row and bias in front, its row behind


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_is_the_published_tokenizer(name):
    config = load_config(f"{ROOT}/configs/tokenizer/{name}.py")
    told = describe.run(config)["parameters"]
    uses = ("trainable", "total", "encoding", "decoding")
    assert tuple(told[f"tokenizer_{use}"] for use in uses) == TOKENIZERS[name]
    assert config.job == "train_tokenizer"


BITS = [10, 12, 14, 16, 18, 32, 64, 128, 256]


@pytest.mark.slow
@pytest.mark.parametrize(
    "bits", [b if b in (10, 256) else pytest.param(b, marks=pytest.mark.exhaustive) for b in BITS]
)
def test_tokenizers_of_any_bits(bits):
    """One override is enough for Table 1 and Figure 4."""
    config = load_config(f"{ROOT}/configs/tokenizer/bar_fsq.py")
    config.model.tokenizer.bits = bits
    validate(config)
    described = describe.run(config)
    more = (bits - 16) * PER_BIT
    assert described["parameters"]["tokenizer_trainable"] == 723_525_716 + more
    assert described["parameters"]["tokenizer_total"] == 1_151_413_780 + more
    assert described["bit_budget"] == 256 * bits


def test_there_is_a_file_for_each_published_tokenizer():
    files = (ROOT / "configs/tokenizer").glob("*.py")
    assert {file.stem for file in files} - {"cifar10"} == TOKENIZERS.keys()


def test_its_docstring_quotes_table_1():
    text = (ROOT / "configs/tokenizer/bar_fsq.py").read_text()
    for bits, rfid in figures.RFID.items():
        assert re.search(rf"{rfid:.2f}\s+at {bits}\b", text), bits


def test_there_is_a_file_for_each_published_generator():
    files = (ROOT / "configs/masked_bit").glob("*.py")
    assert {file.stem for file in files} == PUBLISHED.keys()


# --- configs/README.md ---------------------------------------------------------------------------

README = (ROOT / "configs/README.md").read_text()


def test_readme_names_every_file():
    files = [path.removeprefix("configs/") for path in CONFIGS]
    assert [file for file in files if f"]({file})" not in README] == []


def test_readme_overrides_are_fields():
    fields = {name for name, _ in flatten(default_config())}
    overrides = set(re.findall(r"--config\.([a-z_.0-9]+)=", README))
    assert len(overrides) > 10
    assert overrides <= fields


def test_readme_schedules_sum_to_their_bits():
    rows = re.findall(r"^\| (\d+) \| ([\d,]+) \|", README, re.M)
    assert len(rows) == 7 + 4 + 4
    assert [row for row in rows if sum(map(int, row[1].split(","))) != int(row[0])] == []


def test_readme_has_the_numbers_that_are_drawn():
    """Table 1 stands there and in visualize/figures.py."""
    table = README.partition("## Table 1")[2].partition("## Table 2a")[0]
    for bits, rfid in figures.RFID.items():
        [row] = re.findall(rf"^\| {bits} \| [\d,]+ \| {rfid:.2f} \| (.*) \|$", table, re.M)
        for head, cell in zip(figures.HEADS, row.split(" | "), strict=True):
            told = re.findall(r"([\d.]+) / ", cell)
            assert told == [f"{fid:.2f}" for fid in figures.GFID[head].get(bits, ())]
