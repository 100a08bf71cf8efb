"""The pure functions of bar_jax/nn/, with and without jit, against NumPy in float64."""

import functools

import numpy as np

from bar_jax.nn import attention, guidance, imagenet, narrow, resize, rotary, time, vit
from bar_jax.nn.linear import lookup
from tests.variants import against_numpy

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (2, 4, 6, 3))
QUERY, KEY, VALUE = RNG.normal(size=(3, 2, 5, 2, 4))  # [B, S, H, C]
CAUSAL = np.tril(np.ones((5, 5), bool))
ANGLES = RNG.uniform(0, 6, (2, 5, 2)).repeat(2, axis=-1)
KERNEL = RNG.normal(size=(7, 5))
TIMES = np.array([0.0, 0.2504, 1.0])


def attended(query, key, value, visible):
    """One example, head and query at a time."""
    found = np.zeros_like(query)
    for b, q, h in np.ndindex(query.shape[:3]):
        logits = np.where(visible[q], key[b, :, h] @ query[b, q, h] / 2, -np.inf)  # sqrt(4)
        weights = np.exp(logits - logits.max())
        found[b, q, h] = weights / weights.sum() @ value[b, :, h]
    return found


def turned(x, cos, sin):
    """Pairs of channels as complex numbers."""
    z = (x[..., ::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)[:, :, None, ::2]
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def patches(images):
    """Of 2 x 2 px, cut out one after another."""
    cut = [images[:, i : i + 2, j : j + 2] for i in range(0, 4, 2) for j in range(0, 6, 2)]
    return np.stack([patch.reshape(2, -1) for patch in cut], axis=1)


def in_int8(kernel):
    scale = np.abs(kernel).max(0) / 127
    return np.round(kernel / scale).astype(np.int8), scale


def product(rows):
    """`narrow.multiply` by the int8 kernel as it is laid out."""

    def multiply(x):
        codes, _ = narrow.quantize(KERNEL.astype(np.float32))
        return narrow.multiply(x, narrow.to_tiles(codes), 5)

    return multiply, (RNG.normal(size=(rows, 7)),), lambda x: x @ in_int8(KERNEL)[0].astype(float)


TestVariants = against_numpy(
    [
        ("attend", attention.attend, (QUERY, KEY, VALUE),
         lambda *qkv: attended(*qkv, np.ones((5, 5), bool))),
        ("attend_causal", functools.partial(attention.attend, causal=True), (QUERY, KEY, VALUE),
         lambda *qkv: attended(*qkv, CAUSAL)),
        ("attend_visible", attention.attend, (QUERY, KEY, VALUE, CAUSAL.T), attended),
        ("rotate", rotary.rotate, (QUERY, np.cos(ANGLES), np.sin(ANGLES)), turned),
        ("patchify", functools.partial(vit.patchify, patch_size=2), (IMAGES,), patches),
        ("unpatchify", functools.partial(vit.unpatchify, grid=(2, 3), patch_size=2),
         (patches(IMAGES),), lambda _: IMAGES),
        ("normalized", imagenet.normalized, (IMAGES,),
         lambda x: ((x + 1) / 2 - imagenet.MEAN) / imagenet.STD),
        ("area", functools.partial(resize.resize, size=(2, 3), mode="area"), (IMAGES,),
         lambda x: x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))),
        *(
            (f"{mode}_of_one_colour", functools.partial(resize.resize, size=9, mode=mode),
             (np.full((1, 4, 6, 3), 3.0),), lambda x: np.full((1, 9, 9, 3), 3.0))
            for mode in (*resize.IN_JAX, *resize.WEIGHTS)
        ),
        ("guided", functools.partial(guidance.guided, scale=3.0), (KERNEL[:6],),
         lambda x: x[3:] + 3 * (x[:3] - x[3:])),
        ("unguided", functools.partial(guidance.guided, scale=None), (KERNEL,), lambda x: x),
        ("drop_labels", functools.partial(guidance.drop_labels, rate=0.3, no_class=9),
         (np.arange(4), np.array([0.1, 0.3, 0.2, 0.9])), lambda *_: np.array([9, 1, 9, 3])),
        ("lookup", lookup, (KERNEL, np.array([[0, 6], [3, 3]])), lambda table, i: table[i]),
        ("time_index", time.time_index, (TIMES,), lambda times: np.array([0, 250, 1000])),
        ("sinusoidal", functools.partial(time.sinusoidal, size=6), (np.array([0, 3, 900]),),
         lambda i: np.exp(1j * np.outer(i, 1e4 ** (-np.arange(3) / 3))).view(float).reshape(
             3, 3, 2).swapaxes(1, 2).reshape(3, 6)),
        ("quantize", narrow.quantize, (KERNEL,), in_int8),
        ("multiply_few_rows", *product(2)),
        ("multiply_many_rows", *product(narrow.FEW_ROWS + 1)),
    ],
    rtol=1e-3, atol=1e-4,
)  # fmt: skip
