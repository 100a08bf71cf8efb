"""The pure functions of bar_jax/losses/, with and without jit, against NumPy in float64."""

import functools

import numpy as np

from bar_jax.losses import discriminator, gram, prefixes, reconstruction, weighted
from tests.variants import against_numpy

RNG = np.random.default_rng(0)
IMAGES, OTHERS = RNG.uniform(-1.2, 1.2, (2, 2, 4, 4, 3))
REAL, FAKE = RNG.normal(size=(2, 3, 5))
FEATURES = [RNG.normal(size=(2, side, side, 3)) for side in (4, 4, 2)]
MORE = [RNG.normal(size=x.shape) for x in FEATURES]
A, Z = RNG.normal(size=(5, 6)), RNG.normal(size=(3, 6, 2))
COEFFICIENTS = np.einsum("kn,bnd->bkd", A, Z) + RNG.normal(size=(3, 5, 2))
NAMES = discriminator.CONVOLUTIONS
HEADS = {name: {"kernel": RNG.normal(size=(2, 3, 4, 5))} for name in NAMES}
PAIRS = {name: {"u": RNG.normal(size=(2, 5)), "v": RNG.normal(size=(2, 3, 4))} for name in NAMES}
over = lambda x: tuple(range(1, x.ndim))
unit = lambda x: x / np.sqrt(np.sum(x**2, axis=over(x), keepdims=True))


def share_left(z, y, A):
    """What prefixes leave of the latents, of their energy."""
    left = [(z - np.einsum("kn,bkd->bnd", A[:k], y[:, :k])) ** 2 for k in range(1, len(A) + 1)]
    return np.mean(left, axis=(0, 2, 3)) / np.mean(z**2, axis=(1, 2))


def gram_difference(features, others):
    """Of layers that count twice, and of each stage's last, which counts once."""
    matrix = lambda x: (
        np.stack([row.reshape(-1, 3).T @ row.reshape(-1, 3) for row in x]) / x[0].size
    )
    errors = [np.mean((matrix(a) - matrix(b)) ** 2, axis=(1, 2)) for a, b in zip(
        features, others, strict=True
    )]  # fmt: skip
    return 2 * errors[0] + errors[1] + errors[2]  # two stages, of two layers and of one


def normalised(x, groups):
    grouped = x.reshape(groups, -1, x.shape[-1])
    mean, std = grouped.mean(1, keepdims=True), np.sqrt(grouped.var(1, keepdims=True) + 1e-6)
    return ((grouped - mean) / std).reshape(x.shape)


def stepped(heads, pairs):
    """A power iteration, a head at a time."""
    found = {}
    for name, pair in pairs.items():
        kernel = heads[name]["kernel"].reshape(2, 12, 5)
        v = unit(np.stack([k @ u for k, u in zip(kernel, pair["u"], strict=True)]))
        u = unit(np.stack([row @ k for k, row in zip(kernel, v, strict=True)]))
        found[name] = {"u": u, "v": v.reshape(2, 3, 4)}
    return found


def norms(heads, pairs):
    kernel = {name: head["kernel"].reshape(2, 12, 5) for name, head in heads.items()}
    value = lambda name, i: pairs[name]["v"][i].ravel() @ kernel[name][i] @ pairs[name]["u"][i]
    return {name: np.stack([value(name, i) for i in range(2)]) for name in heads}


TestVariants = against_numpy(
    [
        ("to_8_bits", reconstruction.to_8_bits, (IMAGES,),
         lambda x: np.round(255 * np.clip((x + 1) / 2, 0, 1)) / 255),
        ("absolute_error", reconstruction.absolute_error, (IMAGES, OTHERS),
         lambda a, b: np.mean(np.abs(a - b), axis=over(a))),
        ("squared_error", reconstruction.squared_error, (IMAGES, OTHERS),
         lambda a, b: np.mean((a - b) ** 2, axis=over(a))),
        ("weighted", lambda a, b: weighted({"a": a, "b": b}, {"a": 2.0, "b": 0.5, "c": 1.0}),
         (REAL[:, 0], FAKE[:, 0]),
         lambda a, b: {"loss": (np.sum(2 * a + 0.5 * b), 3.0), "a": (a.sum(), 3.0),
                       "b": (b.sum(), 3.0)}),
        ("prefixes_residual", prefixes.residual, (Z, COEFFICIENTS, A), share_left),
        ("gram_matrix", gram.gram_matrix, (FEATURES[0],),
         lambda x: np.einsum("bhwc,bhwd->bcd", x, x) / 48),
        ("gram", lambda *layers: gram.gram([layers[:2], layers[2:3]], [layers[3:5], layers[5:]]),
         (*FEATURES, *MORE), lambda *layers: gram_difference(layers[:3], layers[3:])),
        ("hinge", discriminator.hinge, (REAL, FAKE),
         lambda real, fake: 0.5 * (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake)).mean(-1)),
        ("generator_loss", discriminator.generator_loss, (FAKE,), lambda fake: -fake.mean(-1)),
        ("as_stored", discriminator.as_stored, (IMAGES,),
         lambda x: np.round(127.5 * (np.clip(x, -1, 1) + 1)) / 127.5 - 1),
        ("batch_norm_local", functools.partial(discriminator.batch_norm_local, virtual_batch=2),
         (RNG.normal(size=(4, 3, 5)), RNG.normal(size=5), RNG.normal(size=5)),
         lambda x, scale, bias: normalised(x, 2) * scale + bias),
        ("power_iteration", discriminator.power_iteration, (HEADS, PAIRS), stepped),
        ("spectral_norms", discriminator.spectral_norms, (HEADS, PAIRS), norms),
    ]
)  # fmt: skip
