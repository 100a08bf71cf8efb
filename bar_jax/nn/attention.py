"""Scaled dot-product attention."""

import functools
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.runtime.mesh import constrain_batch

logger = logging.getLogger(__name__)

# What cuDNN's gradient is given where a length is odd: the next multiple of this.
ALIGNMENT = 8


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array | None = None,
    *,
    causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(C)) v, with the softmax in float32.

    On NVIDIA GPUs from Ampere on, attention in half precision without `visible` and dropout is
    cuDNN's, forwards and backwards, which never holds the [Q, K] weights. All else is XLA's, on
    every platform. For the gradient of a layer XLA's holds, by JAX's count of residuals in half
    precision, 11 bytes for each of the B H Q K weights, with dropout 15: at 1024 positions and 16
    heads 252 MB an image. Blocks recompute them (`nn.remat`), so one layer has them at a time.

    `visible` stays XLA's because cuDNN would take it as a bias, whose gradient, a sum over the
    batch that nobody needs, JAX 0.10 always asks for; dropout because the seed of cuDNN's is a
    constant of the program: every layer and every step would drop the same.

    Args:
      query: [B, Q, H, C].
      key, value: [B, K, H, C].
      visible: bool [Q, K], True where a query sees a key; None: everything is seen.
      causal: position i sees positions 0..i (Q = K; instead of `visible`).
      dropout_rate: fraction of attention weights that are dropped, drawn with `dropout_key`.

    Returns:
      [B, Q, H, C] in the dtype of the query.
    """
    if dropout_rate == 0.0:
        if visible is None and _cudnn_takes(query, key, value):
            return _fused(query, key, value, causal)
        mask = None if visible is None else visible[None, None]
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=causal, implementation="xla"
        )
    if causal:
        visible = jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))
    return nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if visible is None else visible[None, None],
        dropout_rng=dropout_key,
        dropout_rate=dropout_rate,
        broadcast_dropout=False,
        dtype=query.dtype,
        force_fp32_for_softmax=True,
    )


def padded(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool, implementation: str
) -> jax.Array:
    """`attend`, computed on sequences of even lengths.

    Odd ones are filled up with zeros to a multiple of `ALIGNMENT`. Those rows have no effect: of
    causal attention they come after all that is kept, else the number of true keys is given, and
    the queries among them are cut off again.

    Args:
      implementation: of `jax.nn.dot_product_attention`, cudnn | xla.
    """
    length, keys = query.shape[1], key.shape[1]
    query, key, value = _even(query), _even(key), _even(value)
    lengths = {}
    if key.shape[1] > keys and not causal:
        # JAX leaves lengths whole on every device, with entries for examples of others, unless
        # they are cut like the batch; those of the queries it would make itself, whole.
        each = lambda n: constrain_batch(jnp.full(query.shape[:1], n, jnp.int32))
        lengths = dict(query_seq_lengths=each(query.shape[1]), key_value_seq_lengths=each(keys))
    out = jax.nn.dot_product_attention(
        query, key, value, is_causal=causal, implementation=implementation, **lengths
    )
    return out[:, :length]


def _even(x: jax.Array) -> jax.Array:
    """[B, N, H, C] as it is, or if N is odd, with zeros to the next multiple of `ALIGNMENT`."""
    more = -x.shape[1] % ALIGNMENT if x.shape[1] % 2 else 0
    return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _fused(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    """cuDNN's attention. It takes odd lengths, but JAX refuses them where there is a gradient."""
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")


def _fused_forward(query, key, value, causal):
    attention = functools.partial(padded, causal=causal, implementation="cudnn")
    return jax.vjp(attention, query, key, value)


_fused.defvjp(_fused_forward, lambda causal, backward, gradient: backward(gradient))


def _cudnn_takes(query: jax.Array, key: jax.Array, value: jax.Array) -> bool:
    """Whether this is for cuDNN's fused attention, and JAX lets it have it, with gradients.

    What is traced depends on it, so it is decided while tracing, as JAX does: with
    `jax.lax.platform_dependent` both ways would be traced, and cuDNN's cannot be without a GPU.
    """
    head_dim = query.shape[-1]
    fits = head_dim <= 128 and head_dim % 8 == 0 and query.dtype in (jnp.bfloat16, jnp.float16)
    if not (fits and has_fused_attention()):
        return False
    try:
        jax.eval_shape(lambda *x: _fused_forward(*x, False), query, key, value)
    except RuntimeError as refusal:  # NotImplementedError is one: cuDNN is missing or too old
        logger.warning("attention is XLA's, not cuDNN's: %s", refusal)
        return False
    return True


def has_fused_attention() -> bool:
    """Whether the devices that are traced for are NVIDIA's, of the Ampere generation or newer.

    All of them: every process must trace the same program.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # A mesh may be of devices other than the default ones, even such as are not here.
    device = None if mesh.empty else mesh.abstract_device
    if (device.platform if device else jax.default_backend()) != "gpu":
        return False
    try:
        devices = jax.devices("gpu")
    except RuntimeError:  # a mesh of GPUs that are not here
        return False
    return all(_is_ampere_or_newer(device) for device in devices)


def _is_ampere_or_newer(device: jax.Device) -> bool:
    """False for AMD's, whose version names ROCm and whose capability is a name (gfx90a)."""
    if "cuda" not in device.client.platform_version.lower():
        return False
    generation = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return generation.isdigit() and int(generation) >= 8
