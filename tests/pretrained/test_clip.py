"""Tests of bar_jax/pretrained/clip.py; values are compared in tests/nn."""

import numpy as np
import pytest

from bar_jax.pretrained import manifest
from bar_jax.pretrained.clip import clip_params
from bar_jax.runtime.errors import InputError

MODEL = next(m for m in manifest.published() if m.model == "clip_vit_l14")


@pytest.mark.parametrize(
    "name", ["vision_model.pre_layrnorm.bias", "text_model.encoder.layers.7.self_attn.k_proj.bias"]
)
def test_a_missing_tensor_is_named(name):
    """Of tensors that take no memory; all of both towers are looked for."""
    tensors = {key: np.broadcast_to(np.float32(0), s) for key, s in MODEL.tensors.items()}
    del tensors[name]
    with pytest.raises(InputError, match=f"no tensor {name}"):
        clip_params(tensors)
