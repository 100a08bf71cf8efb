"""Tests of bar_jax/pretrained/manifest.py, and of what lies in third_party/."""

import json
from pathlib import Path

import numpy as np
import pytest

from bar_jax.pretrained import manifest
from bar_jax.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted(ROOT.glob("third_party/*/*.json"))
MODELS = {m.model: m for m in manifest.published()}


def zeros(shapes):
    """Tensors of these shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def refused(tensors, needed, optional=None):
    with pytest.raises(InputError) as error:
        manifest.check("file.bin", zeros(tensors), needed, optional or {}, "the configured model")
    return str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    tensors = {"good": np.zeros(3), "bad.weight": np.array([0, value, value])}
    tensors["mask"] = np.array(-np.inf)  # which is not read
    needed = {"good": (3,), "bad.weight": (3,)}
    with pytest.raises(InputError, match="found bad.weight with 2 of 3 numbers that are NaN"):
        manifest.check("file.bin", tensors, needed, {"mask": None}, "the configured model")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_as_short_as_it_can_be(path):
    stored = json.loads(path.read_text())
    assert list(stored) == ["model", "files", "tensors", "optional"]
    assert stored["model"] == path.stem
    for part in (stored["tensors"], *stored["optional"].values()):
        assert manifest.fold(manifest.unfold(part)) == part


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_its_folder_says_where_the_files_come_from(path):
    stored, readme = json.loads(path.read_text()), (path.parent / "README.md").read_text()
    for name in (path.name, *stored["files"]):
        assert f"`{name}`" in readme


def test_fold():
    values = {f"blocks.{i}.norm.1.bias": [4] for i in (0, 1, 2, 5)}
    values |= {"blocks.3.norm.1.bias": [5], "x": [1], "y.0": [2], "2.z": [3], "a.007.b": [1]}
    values |= {"mlp.0.w": [4], "mlp.2.w": [4]}
    folded = manifest.fold(values)
    assert folded == {
        "blocks.{0..2}.norm.1.bias": [4],
        "blocks.5.norm.1.bias": [4],
        "blocks.3.norm.1.bias": [5],
        "x": [1],
        "y.0": [2],
        "2.z": [3],
        "a.007.b": [1],
        "mlp.0.w": [4],
        "mlp.2.w": [4],
    }
    assert manifest.unfold(folded) == {name: tuple(shape) for name, shape in values.items()}


def test_right_tensors_pass():
    needed, optional = {"a": (2, 3), "table": (None, 3)}, {"buffer": (4,), "other": None}
    for more in ({}, {"buffer": (4,)}, {"other": (1, 2, 3)}):
        tensors = zeros({"a": (2, 3), "table": (7, 3), **more})
        manifest.check("file.bin", tensors, needed, optional, "the configured model")


def test_everything_that_is_wrong_is_told_at_once():
    needed = {f"blocks.{i}.{name}": (2, 3) for i in range(4) for name in ("w", "b")}
    needed |= {"table": (None, 3)}
    tensors = {name: shape for name, shape in needed.items() if not name.endswith("3.b")}
    tensors |= {"blocks.0.b": (2,), "blocks.1.b": (2,), "table": (7, 4), "buffer": (5,)}
    tensors |= {"stray": (1,), "blocks.4.w": (2, 3), "blocks.5.w": (2, 3)}
    assert refused(tensors, needed, {"buffer": (4,)}).splitlines() == [
        "file.bin: found tensors that do not fit, expected those of the configured model",
        "  1 missing:",
        "    blocks.3.b",
        "  3 unused:",
        "    stray",
        "    blocks.{4..5}.w",
        "  4 of another shape:",
        "    blocks.{0..1}.b: [2], expected [2, 3]",
        "    table: [7, 4], expected [any, 3]",
        "    buffer: [5], expected [4]",
    ]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1), (3, 2), (1, 2, 3)])
def test_shapes_must_be_equal(shape):
    assert "1 of another shape" in refused({"a": shape}, {"a": (2, 3)})


@pytest.mark.parametrize("wanted", MODELS)
@pytest.mark.parametrize("given", MODELS)
def test_a_published_model_is_known_from_the_others(given, wanted):
    tensors = {**MODELS[given].tensors, **MODELS[given].optional}
    if given == wanted:
        manifest.check("file.bin", zeros(tensors), MODELS[wanted].tensors, {}, "the model")
    else:
        message = refused(tensors, MODELS[wanted].tensors)
        assert message.startswith(f"file.bin: found the tensors of {given} (")
        assert message.endswith(f"expected those of {wanted}, the configured model")


def test_a_published_model_for_one_that_is_not_published():
    tensors = MODELS["bar_l"].tensors
    message = refused(tensors, tensors | {"extra": (1,)})
    assert message.startswith("file.bin: found the tensors of bar_l, expected those of the config")
    assert message.endswith("  1 missing:\n    extra")


def test_a_damaged_file_of_another_model():
    tensors = MODELS["bar_l"].tensors | {"stray": (1,)}
    message = refused(tensors, MODELS["bar_b"].tensors)
    assert message.startswith("file.bin: found tensors most like those of bar_l, expected those of")
    assert "    stray\n" in message


def test_a_damaged_file_of_the_right_model():
    tensors = {**MODELS["bar_b"].tensors, "blocks.3.norm1.weight": (5,)}
    message = refused(tensors, MODELS["bar_b"].tensors)
    assert message.startswith("file.bin: found tensors that do not fit, expected those of bar_b,")
    assert message.endswith("    blocks.3.norm1.weight: [5], expected [768]")


def test_what_a_published_file_may_hold_or_lack():
    """Of the models that third_party/ knows, the shapes of these are checked as well."""
    model = MODELS["bar_fsq_16bits"]
    for optional in ({}, dict(list(model.optional.items())[:3]), model.optional):
        tensors = zeros({**model.tensors, **optional})
        manifest.check("file.bin", tensors, model.tensors, {}, "the configured tokenizer")
    wrong = {**model.tensors, "encoder.siglip.head.probe": (1, 1, 4), "encoder.siglip.x": (1,)}
    message = refused(wrong, model.tensors)
    assert "encoder.siglip.head.probe: [1, 1, 4], expected [1, 1, 1152]" in message
    assert "1 unused:\n    encoder.siglip.x" in message
