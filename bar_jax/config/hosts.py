"""Fields that configs of Basis Autoregressive share: the published hosts, and the basis paper's.

Sizes and schedules are those of the basis paper's Table 8 and of published xAR and MAR.
"""

from ml_collections import ConfigDict

from bar_jax.config import default_config

# Width, layers of the encoder and of the decoder each, heads, and S of guidance with the steps of
# each cell that published xAR is sampled with.
XAR = {"b": (768, 8, 12, 2.7, 40), "l": (1024, 16, 16, 2.3, 50), "h": (1280, 20, 16, 2.2, 50)}
# The same, then width and layers of the diffusion head, and S.
MAR = {
    "b": (768, 12, 12, 1024, 6, 2.9),
    "l": (1024, 16, 16, 1280, 8, 3.0),
    "h": (1280, 20, 16, 1536, 12, 3.2),
}
# Width, layers and heads of the causal transformer: BAR-B's and BAR-L's of the masked-bit paper; no
# H is published, so xAR-H's width and its layers together. Heads and guidance are MAR's.
CAUSAL = {"b": (768, 24, 12), "l": (1280, 32, 16), "h": (1280, 40, 16)}


def _latents(image_size: int) -> ConfigDict:
    """ImageNet in KL-16 latents, and what both hosts train with."""
    config = default_config()
    config.dtype = "bfloat16"
    config.data.image_size = image_size
    config.model.tokenizer.update(dict(kind="kl_vae", patch_size=16))
    config.model.basis.update(dict(kind="learned", init="identity"))
    config.model.generator.update(dict(dropout=0.1, attention_dropout=0.1, shared_time=True))
    train = config.train_generator
    train.update(dict(batch_size=2048, epochs=800.0, ema_decay=0.9999))
    train.optimizer.update(dict(b1=0.9, b2=0.96, weight_decay=0.02, warmup_epochs=100.0))
    train.optimizer.no_decay = ("norm", "bias", "basis")
    config.sample.temperature = 1.0
    return config


def xar(size: str, image_size: int = 256) -> ConfigDict:
    """xAR of size b, l or h with a learned basis (basis paper, Tables 1 to 3 and 8).

    At 512 px the 1024 tokens are 4 cells of 16 x 16; the paper gives no layout.
    """
    width, depth, heads, guidance_scale, _ = XAR[size]
    config = _latents(image_size)
    config.model.generator.update(dict(kind="xar", width=width, depth=depth, heads=heads))
    config.model.generator.update(dict(cell_size=image_size // 32, time="uniform"))
    config.model.head.kind = "flow"
    config.train_generator.optimizer.update(dict(learning_rate=4e-4, end_learning_rate=1e-5))
    # Table 8: 50 steps at every size.
    config.sample.update(dict(guidance_scale=guidance_scale, sampler="euler_maruyama", steps=50))
    return config


def published_xar(size: str, image_size: int = 256) -> ConfigDict:
    """xAR as published: no basis, a time for each cell, a constant learning rate to epoch 600."""
    config = xar(size, image_size)
    config.model.basis.kind = "identity"
    config.model.generator.update(dict(shared_time=False, time="logit_normal"))
    config.train_generator.optimizer.constant_epochs = 600.0
    config.sample.steps = XAR[size][4]
    return config


def mar(size: str, image_size: int = 256) -> ConfigDict:
    """MAR of size b, l or h with a learned basis (basis paper, Tables 2 and 3).

    At 512 px 2 x 2 latents are a token, 256 tokens of 64 channels; the paper gives no layout.
    """
    width, depth, heads, head_width, head_depth, guidance_scale = MAR[size]
    config = _latents(image_size)
    config.model.generator.update(dict(kind="mar", width=width, depth=depth, heads=heads))
    config.model.generator.update(dict(class_repeats=64, patch_size=image_size // 256))
    config.model.head.update(dict(kind="diffusion", width=head_width, depth=head_depth))
    optimizer = config.train_generator.optimizer
    optimizer.update(dict(learning_rate=8e-4, end_learning_rate=0.0, b2=0.95, clip_norm=3.0))
    optimizer.constant_epochs = 800.0  # to the end
    optimizer.no_decay = ("norm", "bias", "head", "basis")
    config.sample.update(dict(guidance_scale=guidance_scale, iterations=256, steps=100))
    return config


def published_mar(size: str, image_size: int = 256) -> ConfigDict:
    """MAR as published: no basis, and a time for each token."""
    config = mar(size, image_size)
    config.model.basis.kind = "identity"
    config.model.generator.shared_time = False
    return config


def causal(size: str) -> ConfigDict:
    """The causal transformer with MAR's diffusion head and a learned basis.

    Basis paper, eqs. 1, 8 and 10. Nobody has published one: its training is MAR's, at xAR's
    learning rate.
    """
    config = mar(size)
    width, depth, heads = CAUSAL[size]
    config.model.generator.update(dict(kind="causal", width=width, depth=depth, heads=heads))
    config.model.generator.class_repeats = 32
    config.sample.iterations = default_config().sample.iterations  # MAR's alone
    optimizer = config.train_generator.optimizer
    optimizer.update(dict(learning_rate=4e-4, clip_norm=1.0))
    optimizer.no_decay = ("norm", "bias", "embed", "adaln", "head", "basis")
    return config
