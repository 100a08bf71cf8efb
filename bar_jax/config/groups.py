"""Groups of fields that several sections have."""

from math import inf

from bar_jax.config.declaration import (
    COUNT,
    EVALUATION,
    NOTHING,
    SHARE,
    SIZE,
    TOKENIZER,
    Affects,
    Field,
)


# fmt: off
def transformer(**sizes: int) -> dict:
    """Sizes of a ViT of a tokenizer."""
    meanings = dict(width="channels", depth="layers", heads="of attention",
        mlp_width="hidden channels of an MLP")
    return {name: Field(size, TOKENIZER, meanings[name], **COUNT) for name, size in sizes.items()}


def durations(affects: Affects, meaning: str, prefix: str = "", epochs: float = 0.0) -> dict:
    """PREFIXsteps, PREFIXepochs and PREFIXimages: one of them, the others 0."""
    return {
        f"{prefix}steps": Field(0, affects, meaning, "steps", **SIZE),
        f"{prefix}epochs": Field(epochs, affects, "the same, instead", "epochs", **SIZE),
        f"{prefix}images": Field(0, affects, "the same, instead", "images", **SIZE)}


def training(
    affects: Affects, batch_size: int, epochs: float, ema_decay: float, optimizer: dict
) -> dict:
    """The fields that both stages share."""
    return dict(
        batch_size=Field(batch_size, affects, "global", "images", **COUNT),
        accumulate=Field(1, NOTHING,
            "pieces that a batch is cut into, one after another, to save memory", **COUNT),
        remat=Field(False, NOTHING,
            "False: the backward pass recomputes what is cheap (norms, nonlinearities, attention's "
            "weights) from the outputs of linear layers; True: from a layer's input alone, a third "
            "more arithmetic"),
        **durations(affects, "of the training", epochs=epochs),
        optimizer=optimizer,
        ema_decay=Field(ema_decay, affects,
            "largest decay of the moving average of parameters; 0: none is kept", **SHARE),
        log_every=Field(100, NOTHING, "from one logged step to the next", "steps", **COUNT),
        save_every=Field(1000, NOTHING, "from one checkpoint to the next", "steps", **COUNT),
        save_minutes=Field(10.0, NOTHING,
            "also when so long ago was the last save; 0: by steps alone", "minutes", **SIZE),
        keep_checkpoints=Field(3, NOTHING, "older ones are deleted", **COUNT),
        on_damaged_checkpoint=Field("refuse", NOTHING,
            "if the newest checkpoint's files are not what was saved", choices={
                "refuse": "", "previous": "go on from, or use, the one before it; the damaged one "
                "is renamed when training goes on"}),
        evaluate_every=Field(5000, NOTHING, "from one evaluation to the next", "steps", **COUNT),
        evaluate_images=Field(1000, EVALUATION,
            "at most this many validation images", "images", **COUNT),
    )


def optimizer(
    affects: Affects, learning_rate: float, warmup_epochs: float, b2=0.999, weight_decay=0.0
) -> dict:
    """AdamW, its warm-up and its cosine."""
    return dict(
        learning_rate=Field(learning_rate, affects, "after warm-up", **SIZE),
        end_learning_rate=Field(1e-5, affects, "at the end of the cosine", **SIZE),
        **durations(affects, "of the warm-up, linear from 0", "warmup_", warmup_epochs),
        **durations(affects, "constant up to here, then the cosine; 0: it begins at once",
            "constant_"),
        b1=Field(0.9, affects, "decay of the mean of gradients", **SHARE),
        b2=Field(b2, affects, "decay of the mean of their squares", **SHARE),
        weight_decay=Field(weight_decay, affects, "of AdamW", **SIZE),
        no_decay=Field(("norm", "bias", "embed", "adaln", "basis"), affects,
            "of parameters whose path holds one of these there is no decay. These are those of "
            "published masked-bit code: 1-D parameters, and names with norm, ln (so adaLN too), "
            "bias or embed", of=str),
        clip_norm=Field(1.0, affects, "of the gradient over all parameters", above=0, most=inf),
    )
# fmt: on
