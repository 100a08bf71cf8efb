"""Tests of bar_jax/config/effects.py: a field acts, or is named."""

from pathlib import Path

import pytest

from bar_jax.config import default_config, flatten
from bar_jax.config.effects import without_effect
from bar_jax.config.file import load_config, read
from bar_jax.config.presets import tiny
from bar_jax.config.validation import CHOICES, validate
from bar_jax.generators import make_generator, sampling_settings
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore
from tests import tracing

ROOT = Path(__file__).parents[2]


def _tiny(**kinds):
    """The smallest config, with fields of `model` changed: `part__field=value`."""
    config = tiny(default_config())
    config.model.tokenizer.encoder.depth = config.model.tokenizer.decoder.depth = 1
    config.model.generator.depth = 1
    config.model.tokenizer.kl.attention = 64  # one of the three levels that 256 px would have
    config.update_from_flattened_dict(
        {f"model.{name.replace('__', '.')}": value for name, value in kinds.items()}
    )
    validate(config)
    return config


REAL = dict(generator__shared_time=True, basis__init="cells")
# One of each tokenizer, basis that has fields of its own, generator and head.
CONFIGS = {
    "masked_bit": dict(),
    "bit": dict(head__kind="bit", basis__kind="raster"),
    "unified": dict(
        tokenizer__kind="basis_fsq", basis__kind="learned", generator__rope="1d",
        basis__init="frequency",
    ),
    "xar": dict(
        **REAL, tokenizer__kind="pixels", basis__kind="learned", basis__objective="bar",
        generator__kind="xar", head__kind="flow",
    ),
    "residual": dict(
        **REAL, tokenizer__kind="pixels", basis__kind="learned", generator__kind="xar",
        head__kind="flow",
    ),
    "mar": dict(
        tokenizer__kind="kl_vae", basis__kind="compact",
        generator__kind="mar", head__kind="diffusion",
    ),
    "causal": dict(
        **REAL, tokenizer__kind="pixels", basis__kind="learned", basis__objective="bar",
        head__kind="diffusion",
    ),
}  # fmt: skip


# Numbers that programs are given when they run, and what also asks which devices there are.
NUMBERS = ("model.generator.order.", "sample.temperature", "sample.labels", "sample.images")
NUMBERS += ("sample.batch_size", "sample.keep", "sample.attention")


def _others(config, name, value):
    """Values of a field that are not its own."""
    if name in CHOICES:
        return [choice for choice in CHOICES[name] if choice != value]
    if name.endswith("basis.kind") or name.endswith("basis.init"):
        return ["subsample", "haar", "pca"]
    if name == "sample.unmasking_schedule":
        return [(16,)]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2 or 1, value // 2, value + 1, value + 4]
    if isinstance(value, float):
        return [value / 2 if value else 0.25]
    return []


def _changed(config, name, value):
    """The config with one field changed, None if validation refuses it."""
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({name: value})
    try:
        validate(other)
        sampling_settings(other, "gpu")
    except InputError:
        return None
    return other


def _made(config):
    """What a config makes: modules, settings of the sampler, and how a basis is trained."""
    generator, tokenizer = make_generator(config), make_tokenizer(config)
    made = [generator, tokenizer, restore.make_sampler(config), restore.make_codec(config)]
    made.append(sampling_settings(config, "gpu"))
    section = config.model.basis
    if section.kind == "learned":
        made.append((section.projection, section.delta, section.regularizer))
    return made, config.model.tokenizer.encoder.kind, config.sample.guidance_scale


@pytest.mark.parametrize("name", CONFIGS)
def test_a_field_changes_what_is_made_or_is_named(name):
    config = _tiny(**CONFIGS[name])
    made = _made(config)
    fields = {n: v for n, v in flatten(config) if n.startswith(("model.", "sample."))}
    idle = without_effect(config, fields)
    for field, value in fields.items():
        if field in idle or field.startswith(NUMBERS):
            continue
        others = (_changed(config, field, other) for other in _others(config, field, value))
        others = [other for other in others if other is not None and other != config]
        assert not others or any(_made(other) != made for other in others), field


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["bit", "xar", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("unified", "mar"))],
)
def test_what_is_named_changes_no_program(name):
    config = _tiny(**CONFIGS[name])
    programs, changed = tracing.digests(config), []
    for field in without_effect(config, dict(flatten(config))):
        for value in _others(config, field, dict(flatten(config))[field]):
            if other := _changed(config, field, value):
                config, changed = other, [*changed, field]
                break
    assert len(changed) > 10
    assert tracing.digests(config) == programs, changed


FILES = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("configs/**/*.py"))


@pytest.mark.parametrize("file", FILES)
def test_no_published_config_has_a_field_without_effect(file):
    assert without_effect(*read(str(ROOT / file))) == {}


# (what is changed in the quickstart, a field, what the message says that it acts with)
IDLE = [
    ({}, "model.basis.delta", "model.basis.kind=learned"),
    ({}, "model.generator.cell_size", "model.generator.kind=xar"),
    ({}, "model.generator.shared_time", "real-valued tokens: model.tokenizer.kind=kl_vae"),
    ({}, "model.generator.time", "model.generator.kind=xar"),
    ({}, "model.generator.mask_ratio_min", "model.generator.kind=mar"),
    ({}, "model.head.timesteps_per_token", "model.head.kind=diffusion"),
    ({}, "sample.sampler", "model.generator.kind=xar"),
    ({}, "sample.steps", "model.generator.kind=xar, or model.head.kind=diffusion"),
    ({}, "sample.iterations", "model.generator.kind=mar"),
    ({}, "sample.clip", "model.head.kind=diffusion"),
    ({}, "model.tokenizer.kl.blocks", "model.tokenizer.kind=kl_vae"),
    ({}, "train_tokenizer.discriminator.start_steps", "train_tokenizer.loss.gan above 0"),
    ({}, "train_tokenizer.discriminator.optimizer.b1", "train_tokenizer.loss.gan above 0"),
    ({}, "train_tokenizer.weights.vgg16", "train_tokenizer.loss.lpips or gram above 0"),
    ({}, "evaluate.weights.clip_l14", "clip_score among evaluate.metrics"),
    ({}, "data.name", "data.source=tfds"),
    ({}, "benchmark.repeats", "job=benchmark"),
    ({"model.head.kind": "bit"}, "sample.unmasking_schedule", "model.head.kind=masked_bit"),
    ({"model.basis.kind": "raster"}, "model.generator.order.anneal_end_steps",
     "model.basis.kind=random"),
    ({"sample.labels": (1, 2)}, "sample.images_per_class", "no sample.labels and no sample.images"),
]  # fmt: skip


@pytest.mark.parametrize("changed, field, needed", IDLE)
def test_a_field_without_effect_is_named(changed, field, needed):
    config = load_config(str(ROOT / "configs/quickstart.py"))
    config.update_from_flattened_dict(changed)
    assert without_effect(config, ["seed", field]) == {field: needed}


def test_a_field_acts_where_its_part_is_chosen():
    config = load_config(str(ROOT / "configs/basis/xar_b.py"))
    fields = ["model.basis.delta", "model.generator.cell_size", "sample.sampler"]
    assert without_effect(config, fields) == {}


def test_what_a_file_sets(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from bar_jax.config import default_config\n"
        "def get_config(size=None):\n"
        "    config = default_config()\n"
        "    config.data.name = ''\n"
        "    config.model.generator.cell_size = 3\n"
        "    config.seed = 7 if size else 0\n"
        "    return config\n"
    )
    _, own = read(f"{file}:small")
    assert own == ["model.generator.cell_size"]
