"""Tests of bar_jax/jobs/evaluate.py and reference.py, with small networks in the places of large.

The jobs themselves, with a trained classifier, run in tests/test_pipeline.py.
"""

import json
import logging
import warnings

import numpy as np
import pytest
from PIL import Image
from scipy import linalg

from bar_jax import data
from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.data import image_sets
from bar_jax.jobs import evaluate, reference
from bar_jax.metrics import feature_networks
from bar_jax.metrics import measuring as measuring_lib
from bar_jax.metrics import reference as reference_lib
from bar_jax.metrics.inception_score import inception_score
from bar_jax.metrics.kid import kid
from bar_jax.metrics.precision_recall import precision_recall
from bar_jax.runtime import files
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import make_mesh
from bar_jax.sampling import evaluation
from bar_jax.training import restore
from tests import feature_stand_ins as stand_ins

RNG = np.random.default_rng(0)
REAL = RNG.integers(0, 256, (30, 16, 16, 3), np.uint8)
DRAWN = np.clip(RNG.normal(140, 60, (26, 16, 16, 3)), 0, 255).astype(np.uint8)
LABELS = np.arange(26) % 10
SETTINGS = {"samples": 26, "sample_seed": 4, "sample_classes": "drawn at random"}
INCEPTION = ("fid", "sfid", "inception_score", "precision_recall", "kid")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Samples in `samples.npz`, real images in `real.npz`."""
    config = tiny(default_config())
    config.workdir, config.evaluate.batch_size = str(tmp_path), 8
    config.evaluate.reference, config.evaluate.metrics = str(tmp_path / "real.npz"), INCEPTION
    store(tmp_path / "samples.npz", DRAWN, arr_1=LABELS, settings=json.dumps(SETTINGS))
    store(tmp_path / "real.npz", REAL)
    monkeypatch.setattr(feature_networks, "check", lambda *_: None)
    monkeypatch.setattr(feature_networks, "load", lambda c, m, name: stand_ins.network(name))
    return config


def store(path, images, **others):
    np.savez(path, arr_0=images, **others)


def numbers(summary):
    named = {name: value for name, value in summary.items() if name.startswith("sample_")}
    return {name: value for name, value in named.items() if not name.endswith("_note")}


def assert_same(found, expected):
    """To 1e-6; KID is a difference of means near 1, to whose rounding in float32 it is exact."""
    kid = {name for name in expected if name.startswith("sample_kid")}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6 if kid else 0)
    for name in expected.keys() - kid:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name


def frechet(a, b):
    """The textbook's distance of features [N, D], float64."""
    with warnings.catch_warnings(action="ignore"):  # tanh is flat: nearly singular
        root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    covariances = np.cov(a.T) + np.cov(b.T) - 2 * root
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariances)


# --- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "network", "output"),
    [
        ("fid", "inception", "pool"),
        ("sfid", "inception", "spatial"),
        ("fd_dinov2", "dinov2_l14", "class_token"),
    ],
)
def test_frechet_distances_are_those_of_plain_float64(config, metric, network, output):
    config.evaluate.metrics = (metric,)
    real, drawn = (stand_ins.features(network, output, images) for images in (REAL, DRAWN))
    found = evaluate.run(config)[f"sample_{metric}"]
    assert found == pytest.approx(frechet(real, drawn), rel=1e-5)


def test_the_other_numbers_of_inception_are_those_of_their_functions(config):
    summary = evaluate.run(config)
    real, drawn = (stand_ins.features("inception", "pool", images) for images in (REAL, DRAWN))
    logits = stand_ins.features("inception", "logits", DRAWN)
    assert summary["sample_inception_score"] == pytest.approx(inception_score(logits)[0], rel=1e-5)
    both = summary["sample_precision"], summary["sample_recall"]
    assert both == precision_recall(real, drawn)
    assert summary["sample_kid"] == pytest.approx(kid(drawn, real)[0], rel=1e-3, abs=1e-6)


def test_a_set_has_no_distance_to_itself(config, tmp_path):
    config.evaluate.samples, config.evaluate.metrics = str(tmp_path / "real.npz"), ("fid", "sfid")
    summary = evaluate.run(config)
    assert summary["sample_fid"] == pytest.approx(0, abs=1e-6)
    assert summary["sample_sfid"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("batch_size", [16, 64])
def test_numbers_do_not_depend_on_the_batch_size(config, batch_size):
    before = numbers(evaluate.run(config))
    config.evaluate.batch_size = batch_size
    assert_same(numbers(evaluate.run(config)), before)


def test_numbers_do_not_depend_on_the_order(config, tmp_path):
    """But for the Inception Score in groups; here is one group."""
    before = numbers(evaluate.run(config))
    order = np.random.default_rng(3).permutation(26)
    store(tmp_path / "other.npz", DRAWN[order], arr_1=LABELS[order])
    config.evaluate.samples = str(tmp_path / "other.npz")
    # KID's blocks are of all samples and of as many of the reference, the same ones.
    assert_same(numbers(evaluate.run(config)), before)


def test_clip_score_is_the_mean_cosine_with_the_text_of_the_class(config, monkeypatch):
    texts = np.random.default_rng(1).normal(size=(10, 4))
    monkeypatch.setattr(measuring_lib, "class_tokens", lambda *_: None)
    monkeypatch.setattr(feature_networks, "text_features", lambda *_: texts)
    config.evaluate.metrics = ("clip_score",)
    images = stand_ins.features("clip_l14", "image", DRAWN)
    cosines = [
        images[i] @ texts[label] / np.linalg.norm(images[i]) / np.linalg.norm(texts[label])
        for i, label in enumerate(LABELS)
    ]
    summary = evaluate.run(config)
    assert summary["sample_clip_score"] == pytest.approx(np.mean(cosines), rel=1e-5)


# --- what is compared with what ------------------------------------------------------------------


def test_folders_and_npz_are_the_same(config, tmp_path):
    before = numbers(evaluate.run(config))
    for name, images in (("real", REAL), ("drawn", DRAWN)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:03}.png")
    config.evaluate.samples = str(tmp_path / "drawn")
    config.evaluate.reference = str(tmp_path / "real")
    assert_same(numbers(evaluate.run(config)), before)


def test_a_data_set_can_be_either(config):
    """Validation images of the digits against the training images."""
    config.evaluate.update(dict(samples="validation", reference="train", metrics=("fid",)))
    splits = []
    for validation in (False, True):
        source = data.open_images(config, validation)
        crops = [data.center_crop_adm(source[i]["image"], 16) for i in range(len(source))]
        splits.append(stand_ins.features("inception", "pool", np.stack(crops)))
    summary = evaluate.run(config)
    assert summary["sample_fid"] == pytest.approx(frechet(*splits), rel=1e-4)
    assert (summary["evaluated_samples"], summary["reference_images"]) == (176, 1621)


def test_reference_npz_is_written_as_adm_has_it_and_stands_for_the_images(config, tmp_path):
    before = numbers(evaluate.run(config))
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(REAL):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    config.evaluate.reference, config.evaluate.weights.inception = str(folder), "random"
    reference.run(config)
    with np.load(tmp_path / "reference.npz") as stored:
        np.testing.assert_array_equal(stored["arr_0"], REAL)
        pool = stand_ins.features("inception", "pool", REAL)
        np.testing.assert_allclose(stored["mu"], pool.mean(0), rtol=1e-5)
        np.testing.assert_allclose(stored["sigma"], np.cov(pool.T), rtol=1e-4, atol=1e-8)
        assert {"mu_s", "sigma_s", "settings"} <= set(stored.files)
    config.evaluate.reference = str(tmp_path / "reference.npz")
    assert_same(numbers(evaluate.run(config)), before)


def test_the_reference_is_computed_once(config, monkeypatch):
    first = numbers(evaluate.run(config))
    extracted = []
    real = reference_lib.extract
    monkeypatch.setattr(
        reference_lib, "extract", lambda *a, **k: extracted.append(a) or real(*a, **k)
    )
    assert numbers(evaluate.run(config)) == first
    assert not extracted
    store(config.evaluate.reference, REAL[:20])
    assert numbers(evaluate.run(config)) != first
    assert len(extracted) == 1


def statistics(images):
    pool, spatial = (stand_ins.features("inception", o, images) for o in ("pool", "spatial"))
    return dict(
        mu=pool.mean(0), sigma=np.cov(pool.T), mu_s=spatial.mean(0), sigma_s=np.cov(spatial.T)
    )


def test_stored_statistics_count_more_than_the_images_beside_them(config):
    """ADM's statistics are of the whole training set, its images 10,000 of it."""
    before = evaluate.run(config)
    store(config.evaluate.reference, REAL[:12], **statistics(REAL))
    summary = evaluate.run(config)
    assert summary["sample_fid"] == pytest.approx(before["sample_fid"], rel=1e-5)
    real, drawn = (stand_ins.features("inception", "pool", i) for i in (REAL[:12], DRAWN))
    assert (summary["sample_precision"], summary["sample_recall"]) == precision_recall(real, drawn)
    assert summary["reference_images"] == "as stored; 12 for other statistics"


def test_images_beside_the_statistics_are_not_looked_at_for_fid(config, monkeypatch):
    config.evaluate.metrics = ("fid", "inception_score")
    store(config.evaluate.reference, REAL, **statistics(REAL))
    monkeypatch.setattr(reference_lib, "extract", None)
    real, drawn = (stand_ins.features("inception", "pool", images) for images in (REAL, DRAWN))
    assert evaluate.run(config)["sample_fid"] == pytest.approx(frechet(real, drawn), rel=1e-5)


def test_without_images_precision_and_recall_are_left_out_with_the_reason(config, caplog):
    np.savez(config.evaluate.reference, **statistics(REAL))
    with caplog.at_level(logging.WARNING):
        summary = evaluate.run(config)
    reason = f"{config.evaluate.reference} holds no images (arr_0)"
    assert summary["sample_precision_recall_omitted"] == reason == summary["sample_kid_omitted"]
    assert f"no precision_recall: {reason}" in caplog.text
    assert "sample_precision" not in summary and "sample_fid" in summary


def test_mean_and_covariance_alone_are_enough_for_fid(config):
    """As pytorch-fid writes them; what needs more is left out with the reason."""
    config.evaluate.metrics = ("fid", "sfid", "kid")
    stored = statistics(REAL)
    np.savez(config.evaluate.reference, mu=stored["mu"], sigma=stored["sigma"])
    summary = evaluate.run(config)
    real, drawn = (stand_ins.features("inception", "pool", images) for images in (REAL, DRAWN))
    assert summary["sample_fid"] == pytest.approx(frechet(real, drawn), rel=1e-5)
    lacks = f"{config.evaluate.reference} holds neither images (arr_0) nor mu_s and sigma_s"
    assert summary["sample_sfid_omitted"] == lacks
    assert "sample_kid_omitted" in summary


@pytest.mark.parametrize("metrics", [("sfid",), ("kid", "sfid")])
def test_a_reference_of_which_nothing_can_be_had_is_refused_first(config, metrics):
    config.evaluate.metrics = metrics
    np.savez(config.evaluate.reference, mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(InputError, match=f"found mu, sigma, .*what {' or '.join(metrics)} can be"):
        evaluate.check(config)


@pytest.mark.parametrize(
    ("names", "omitted"),
    [("0 1 2 3 4 5 6 7 8 9", ""), ("zero one two three four five six seven eight nine", "'eight'")],
)
def test_folders_are_classes_where_they_are_called_like_them(
    config, tmp_path, monkeypatch, names, omitted
):
    """As many folders in another order would be read as other classes."""
    texts = np.random.default_rng(1).normal(size=(10, 4))
    monkeypatch.setattr(measuring_lib, "class_tokens", lambda *_: None)
    monkeypatch.setattr(feature_networks, "text_features", lambda *_: texts)
    config.evaluate.metrics = ("clip_score",)
    expected = evaluate.run(config)["sample_clip_score"]
    for i, (image, label) in enumerate(zip(DRAWN, LABELS, strict=True)):
        folder = tmp_path / "drawn" / names.split()[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    config.evaluate.samples = str(tmp_path / "drawn")
    summary = evaluate.run(config)
    if omitted:
        assert f"some lie in {omitted}, which is no class" in summary["sample_clip_score_omitted"]
        assert "sample_clip_score" not in summary
    else:
        assert summary["sample_clip_score"] == pytest.approx(expected, rel=1e-5)


def test_without_labels_class_metrics_are_left_out_with_the_reason(config, tmp_path, monkeypatch):
    store(tmp_path / "samples.npz", DRAWN)
    config.evaluate.metrics = ("fid", "clip_score")
    monkeypatch.setattr(measuring_lib, "class_tokens", lambda *_: None)
    summary = evaluate.run(config)
    assert summary["sample_clip_score_omitted"] == "the samples have no labels"
    assert "sample_fid" in summary


# --- few images ----------------------------------------------------------------------------------


def test_what_cannot_be_had_of_few_samples_is_left_out_and_the_rest_computed(config, tmp_path):
    store(tmp_path / "samples.npz", DRAWN[:3])
    summary = evaluate.run(config)
    omitted = {name: summary[name] for name in summary if name.endswith("_omitted")}
    assert omitted == {"sample_precision_recall_omitted": "3 samples, and it needs at least 4"}
    pool = [stand_ins.features("inception", "pool", images) for images in (DRAWN[:3], REAL)]
    assert summary["sample_kid"] == pytest.approx(kid(*pool)[0], rel=1e-3, abs=1e-6)
    assert {"sample_fid", "sample_sfid", "sample_inception_score"} < summary.keys()


def test_few_reference_images_are_as_bad(config):
    store(config.evaluate.reference, REAL[:3])
    reason = evaluate.run(config)["sample_precision_recall_omitted"]
    assert reason == "3 reference images, and it needs at least 4"


def test_one_image_is_not_looked_at(config, tmp_path, monkeypatch):
    store(tmp_path / "samples.npz", DRAWN[:1])
    monkeypatch.setattr(feature_networks, "load", None)
    summary = evaluate.run(config)
    omitted = {name for name in summary if name.endswith("_omitted")}
    assert omitted == {f"sample_{metric}_omitted" for metric in INCEPTION}
    assert summary["evaluated_samples"] == 1


def test_all_of_it_is_told_before_an_image_is_looked_at(config, tmp_path, monkeypatch, caplog):
    store(tmp_path / "samples.npz", DRAWN[:3])
    monkeypatch.setattr(reference_lib, "extract", None)
    with pytest.raises(TypeError):
        evaluate.run(config)
    assert "evaluate: no precision_recall: 3 samples, and it needs at least 4" in caplog.messages
    told = "3 samples for 6 features: a singular covariance, and a biased distance"
    assert f"evaluate: fid: {told}" in caplog.messages


def test_a_note_stands_beside_its_number(config, tmp_path):
    """Six features: of seven samples and more the covariance is whole."""
    config.evaluate.metrics = ("fid", "sfid")
    store(tmp_path / "samples.npz", DRAWN[:6])
    names = list(evaluate.run(config))
    assert names[names.index("sample_fid") + 1] == "sample_fid_note"
    assert "sample_sfid_note" not in names  # of four
    store(tmp_path / "samples.npz", DRAWN[:7])
    assert "sample_fid_note" not in evaluate.run(config)


def test_damaged_images_do_not_count(config):
    measuring = measuring_lib.prepare(config, make_mesh(), INCEPTION, 26)
    few = measuring_lib.counted(measuring, 3)
    assert "precision_recall" in measuring.metrics and "precision_recall" not in few.metrics
    assert few.settings["sample_precision_recall_omitted"] == "3 samples, and it needs at least 4"
    assert few.notes["fid"].startswith("3 samples for 6 features")


def test_a_reference_of_one_image(config, tmp_path):
    (tmp_path / "folder").mkdir()
    Image.fromarray(REAL[0]).save(tmp_path / "folder/0.png")
    config.evaluate.reference, config.evaluate.weights.inception = (
        str(tmp_path / "folder"),
        "random",
    )
    with pytest.raises(InputError, match="folder: found 1 image, expected at least 2"):
        reference.run(config)


# --- the settings --------------------------------------------------------------------------------


def test_settings_stand_beside_the_numbers(config, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        summary = evaluate.run(config)
    expected = {
        "evaluated": str(tmp_path / "samples.npz"),
        "evaluated_samples": 26,
        "evaluated_seed": 4,
        "evaluated_classes": "drawn at random",
        "reference": config.evaluate.reference,
        "reference_digest": files.digest(config.evaluate.reference),
        "reference_images": 30,
        "features_inception": "stand-in of inception; resized to 4 px: mean",
    }
    assert {name: summary[name] for name in expected} == expected
    assert "jax 0." in summary["evaluated_with"]
    [line] = [r.message for r in caplog.records if r.message.startswith("evaluate: sample_fid")]
    assert all(str(value) in line for value in expected.values())
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_another_evaluation_replaces_all_of_the_one_before(config, tmp_path):
    """A number must not stand beside the settings of another."""
    evaluate.run(config)
    config.evaluate.metrics = ("fid",)
    store(tmp_path / "samples.npz", DRAWN[:20])
    summary = evaluate.run(config)
    assert "sample_kid" not in summary and "evaluated_seed" not in summary
    assert summary["evaluated_samples"] == 20
    first, second = map(json.loads, (tmp_path / "evaluations.jsonl").read_text().splitlines())
    assert first["evaluated_seed"] == 4 and "sample_kid" in first
    assert second["sample_fid"] == summary["sample_fid"]


# --- during training -----------------------------------------------------------------------------


def test_samples_of_training_are_of_every_class(config, monkeypatch):
    config.train_generator.update(dict(evaluate_metrics=("fid",), evaluate_samples=26))
    config.evaluate.weights.inception = "random"
    drawn = []

    def draw(config, mesh, models, labels):
        drawn.append(labels)
        for begin in range(0, 26, 13):
            rows = np.arange(begin, begin + 16)
            mask = rows < begin + 13
            index = np.where(mask, rows, 0)
            yield {"image": DRAWN[index], "index": index, "label": labels[index], "mask": mask}

    monkeypatch.setattr(evaluation, "draw", draw)
    mesh, trained = make_mesh(), restore.Trained(None, {}, 0)
    measuring = measuring_lib.prepare(config, mesh, measuring_lib.training_metrics(config), 26)
    found = evaluation.measure_generator(config, mesh, measuring, (trained, trained))
    np.testing.assert_array_equal(drawn[0], [*range(10), *range(10), *range(6)])
    real, own = (stand_ins.features("inception", "pool", images) for images in (REAL, DRAWN))
    assert found == {"fid": pytest.approx(frechet(real, own), rel=1e-5), "evaluated_samples": 26}


def test_training_goes_without_a_metric_whose_file_is_not_named(config, caplog):
    config.train_generator.evaluate_metrics = ("fid", "classifier_fid")
    config.evaluate.weights.inception = ""
    assert measuring_lib.training_metrics(config) == ("classifier_fid",)
    assert "no fid during training: evaluate.weights.inception is not set" in caplog.text
    config.evaluate.weights.inception = "random"
    assert measuring_lib.training_metrics(config) == ("fid", "classifier_fid")


def test_training_on_tokens_alone_has_no_images_to_compare_with(config, caplog):
    config.data.source, config.evaluate.reference = "tokens", "train"
    config.train_generator.evaluate_metrics = ("classifier_fid",)
    assert measuring_lib.training_metrics(config) == ()
    assert "data.source=tokens holds no images" in caplog.text


# --- bad input -----------------------------------------------------------------------------------


def test_samples_and_references_of_another_size(config, tmp_path):
    store(config.evaluate.reference, REAL[:, :8, :8])
    with pytest.raises(InputError, match=r"real.npz: found images of 8 x 8 px, expected 16 x 16"):
        evaluate.run(config)
    store(tmp_path / "samples.npz", DRAWN[:, :8, :8])
    with pytest.raises(InputError, match=r"samples.npz: found images of 8 x 8 px, expected 16 x 1"):
        evaluate.run(config)


def test_statistics_of_another_feature_size(config):
    config.evaluate.metrics = ("fid",)
    np.savez(config.evaluate.reference, mu=np.zeros(9), sigma=np.eye(9), mu_s=0, sigma_s=0)
    with pytest.raises(InputError, match=r"real.npz: found mu_s \[\] and sigma_s \[\]"):
        evaluate.run(config)
    other = dict(mu_s=np.zeros(9), sigma_s=np.eye(9))
    np.savez(config.evaluate.reference, mu=np.zeros(9), sigma=np.eye(9), **other)
    with pytest.raises(InputError, match=r"real.npz: found statistics of 9 features, expected 6"):
        evaluate.run(config)


def test_a_reference_of_nothing(config):
    np.savez(config.evaluate.reference, other=np.zeros(3))
    with pytest.raises(InputError, match=r"real.npz: found other, expected arr_0"):
        evaluate.run(config)
    config.evaluate.reference = "nowhere"
    with pytest.raises(InputError, match=r"evaluate.reference: found no file nowhere"):
        evaluate.run(config)


def test_an_absent_weight_file_is_named_with_its_source_and_the_alternative(config, monkeypatch):
    monkeypatch.undo()
    config.evaluate.weights.inception = "missing.pth"
    with pytest.raises(InputError) as error:
        evaluate.run(config)
    told = str(error.value)
    assert told.startswith("evaluate.weights.inception: found no file missing.pth, expected pt_inc")
    assert "pytorch-fid" in told and "classifier_fid" in told


def test_names_of_classes_are_as_many(config, tmp_path):
    config.evaluate.metrics = ("clip_score",)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    config.evaluate.class_names = str(tmp_path / "names.txt")
    with pytest.raises(InputError, match="evaluate.class_names: found 2 names, expected 10"):
        evaluate.check(config)


def test_tokens_alone_are_no_reference(config):
    config.data.source, config.evaluate.reference = "tokens", "train"
    with pytest.raises(InputError, match="data.source: found 'tokens', which holds no images"):
        evaluate.check(config)


# --- the classifier ------------------------------------------------------------------------------


class Counted:
    """Ten images, each of its own shade, that remember which of them were read."""

    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(self):
        self.read = []

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.read.append(index)
        shade = np.full((16, 16, 3), index, np.uint8)
        return {"image": Image.fromarray(shade), "label": index, "name": str(index)}


def test_only_the_images_that_are_used_are_read(monkeypatch):
    """A whole training set would not fit into memory; they come from all of it."""
    source = Counted()
    monkeypatch.setattr(feature_networks, "CLASSIFIER_IMAGES", 4)
    images, labels = feature_networks._training_images(tiny(default_config()), source)
    assert sorted(source.read) == [0, 3, 6, 9]
    assert labels.tolist() == images[:, 0, 0, 0].tolist() == [0, 3, 6, 9]


def test_the_classifier_is_kept_by_the_data_it_was_trained_on(config, monkeypatch, tmp_path):
    monkeypatch.undo()
    trained = []
    real = feature_networks.classifier.train_classifier
    count = lambda *a, **k: trained.append(a) or real(*a, **k)
    monkeypatch.setattr(feature_networks.classifier, "train_classifier", count)
    monkeypatch.setattr(feature_networks.classifier, "FEWEST_STEPS", 1)
    monkeypatch.setattr(feature_networks.classifier, "MOST_STEPS", 1)
    mesh = make_mesh()
    first = feature_networks.load(config, mesh, "classifier")
    assert feature_networks.load(config, mesh, "classifier").weights == first.weights
    assert len(trained) == 1
    config.data.image_size = 8
    assert feature_networks.load(config, mesh, "classifier").weights != first.weights
    assert len(list(tmp_path.glob("classifier-*.safetensors"))) == 2
    config.data.num_classes = 3
    [path, _] = tmp_path.glob("classifier-*.safetensors")
    config.evaluate.weights.classifier = str(path)
    with pytest.raises(InputError, match="found a classifier of 10 classes, expected one of 3"):
        feature_networks.load(config, mesh, "classifier")


def test_image_sets_are_told_apart_by_what_they_show(config, tmp_path):
    """What the cache of references is by."""
    own = image_sets.fingerprint(image_sets.open_npz(tmp_path / "real.npz", None))
    assert own != image_sets.fingerprint(image_sets.open_npz(tmp_path / "samples.npz", None))
