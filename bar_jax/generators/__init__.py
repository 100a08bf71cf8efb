"""p(tokens | class). A new generator is one file here and one line in KINDS.

What the jobs know of a generator:

    token_shape, token_dtype            of an image's tokens, as the tokenizer knows them
    length, prefix                      tokens that it writes, positions in front of them
    initialize(tokens, labels, keys)    touches every parameter, for `init`
    draw(keys)                          the random draws of a training step
    loss(tokens, labels, draws, random_share, deterministic, counted)       sums over a batch
    sample(params, request)             tokens of a batch, see `request.Request`

Bits are written by the masked-bit generator. Real-valued tokens are written by a host inside
`BasisGenerator`; what that knows of a host:

    channels, num_classes, length       of its sequence y [B, length, channels]
    native_order, takes_order           the order it likes, if any; whether it takes `order`
    draw(keys), predict(y, labels, draws), initialize(...), sample(...)     as above, of y
"""

import flax.linen as nn
from ml_collections import ConfigDict

from bar_jax import heads, tokenizers
from bar_jax.generators import causal_generator, mar, xar
from bar_jax.generators.kind import GeneratorKind
from bar_jax.generators.settings import Settings
from bar_jax.nn import decode_attention

KINDS: dict[str, GeneratorKind] = {
    "causal": causal_generator.KIND,
    "xar": xar.KIND,
    "mar": mar.KIND,
}


def make_generator(config: ConfigDict, remat: bool = False) -> nn.Module:
    """The generator that a config describes; `remat` saves activation memory in training."""
    return KINDS[config.model.generator.kind].make(config, remat)


def sampling_settings(config: ConfigDict, platform: str | None = None) -> Settings:
    """The settings of `config.sample`.

    Args:
      platform: of the devices, cpu | gpu | tpu; None: of those present.

    Raises:
      InputError: `sample.attention` cannot be had on them.
    """
    section = config.sample
    return Settings(
        guided=section.guidance_scale > 1,
        unmasking_schedule=tuple(section.unmasking_schedule),
        order=section.order,
        sampler=section.sampler,
        steps=section.steps,
        iterations=section.iterations,
        clip=section.clip,
        tokens=section.tokens,
        attention=_attention(config, platform),
        weights=section.weights,
    )


def sampling_fields(config: ConfigDict) -> tuple[str, ...]:
    """The fields of `config.sample` that say in which steps the configured generator writes."""
    model = config.model
    parts = (KINDS[model.generator.kind], heads.KINDS[model.head.kind], tokenizers.kind_of(config))
    return tuple(dict.fromkeys(name for part in parts for name in part.sampling_fields))


def _attention(config: ConfigDict, platform: str | None) -> str:
    """Who computes attention over the KV cache."""
    generator = config.model.generator
    queries = KINDS[generator.kind].queries(config)
    if not queries:
        return "xla"
    return decode_attention.choose(
        config.sample.attention,
        config.sample.dtype,
        generator.width // generator.heads,
        queries=queries,
        platform=platform,
    )
