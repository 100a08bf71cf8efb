"""Which fields act with the parts that a config chooses, so that one without effect is named.

Parts say what they read beside their code (`KINDS` of their rooms); here stands what follows from
other choices: of the data, of the losses, of the metrics, of the job.
"""

from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

from bar_jax import bases, generators, heads, tokenizers
from bar_jax.config import flatten
from bar_jax.generators import sampling_fields
from bar_jax.metrics import KINDS
from bar_jax.pretrained import frozen
from bar_jax.tokenizers import basis_inside, real_valued

PARTS = {
    "tokenizer": tokenizers.KINDS,
    "generator": generators.KINDS,
    "head": heads.KINDS,
}
# Sections that one job alone reads.
OF_ONE_JOB = {
    "benchmark.": "benchmark",
    "describe.": "describe",
    "figures.": "figures",
    "published.generator": "import_weights",
    "published.tokenizer": "import_weights",
    "published.export": "export_weights",
}


def without_effect(config: ConfigDict, fields: Iterable[str]) -> dict[str, str]:
    """Those of `fields` that change nothing with what the config chooses.

    Returns:
      Field -> what it acts with.
    """
    rules = list(_rules(config))
    found = {}
    for field in fields:
        for names, needed in rules:
            if any(field == name or (name[-1] == "." and field.startswith(name)) for name in names):
                found.setdefault(field, needed)
    return found


def _rules(config: ConfigDict) -> Iterator[tuple[tuple[str, ...], str]]:
    """Fields that do not act, or beginnings of their names that end with a dot; and with what."""
    yield from _of_parts(config)
    yield from _of_data(config)
    yield from _of_basis(config)
    yield from _of_tokenizer_training(config)
    yield from _of_metrics(config)
    yield from _of_sampling(config)
    for section, job in OF_ONE_JOB.items():
        if config.job != job:
            yield (section,), f"job={job}"
    if not config.train_generator.evaluate_metrics:
        yield ("train_generator.evaluate_samples",), "some train_generator.evaluate_metrics"


def _of_sampling(config: ConfigDict) -> Iterator[tuple[tuple[str, ...], str]]:
    """Fields of `sample` that other kinds read."""
    sample, acting = config.sample, sampling_fields(config)
    reads: dict[str, dict[str, list[str]]] = {}
    for part, kinds in PARTS.items():
        for kind, own in kinds.items():
            for name in own.sampling_fields:
                reads.setdefault(name, {}).setdefault(part, []).append(kind)
    for name, parts in reads.items():
        if name not in acting:
            needed = [f"model.{part}.kind={' or '.join(kinds)}" for part, kinds in parts.items()]
            yield (f"sample.{name}",), ", or ".join(needed)
    if not generators.KINDS[config.model.generator.kind].queries(config):
        cached = [kind for kind, own in generators.KINDS.items() if own.queries(config)]
        needed = f"model.generator.kind={' or '.join(cached)}, which have a KV cache"
        yield ("sample.attention",), needed
    if sample.labels or sample.images:
        yield ("sample.images_per_class",), "no sample.labels and no sample.images"


def _of_parts(config: ConfigDict) -> Iterator[tuple[tuple[str, ...], str]]:
    """Fields that other kinds of the same part read."""
    model = config.model
    bits = not real_valued(config)
    for part, kinds in PARTS.items():
        own = kinds[model[part].kind].fields
        for name in dict.fromkeys(name for kind in kinds.values() for name in kind.fields):
            if name not in own:
                able = [kind for kind, other in kinds.items() if name in other.fields]
                yield (f"model.{part}.{name}",), f"model.{part}.kind={' or '.join(able)}"
    if bits:
        yield ("model.generator.shared_time",), "real-valued tokens: model.tokenizer.kind=kl_vae"
    if model.basis.kind != bases.RANDOM:
        yield ("model.generator.order.",), f"model.basis.kind={bases.RANDOM}"
    if not model.tokenizer.decoder.predictor_width:
        yield ("model.tokenizer.decoder.predictor_layer",), "a predictor_width that is not 0"


def _of_data(config: ConfigDict) -> Iterator[tuple[tuple[str, ...], str]]:
    source = config.data.source
    if source != "tfds":
        yield ("data.name",), "data.source=tfds"
    if source == "digits":
        names = ("path", "train_split", "validation_split")
        yield tuple(f"data.{name}" for name in names), "another data.source than digits"
    if not tokenizers.is_trained(config) or source == "tokens":
        yield ("data.crop",), "a tokenizer that is trained on images"


def _of_basis(config: ConfigDict) -> Iterator[tuple[tuple[str, ...], str]]:
    basis, made = config.model.basis, bases.make_basis(config)
    learned = basis.kind == bases.LEARNED
    prefix = "model.basis."
    if not learned:
        names = ("init", "projection", "delta", "objective", "regularizer", "snr_clip")
        yield tuple(prefix + name for name in names), "model.basis.kind=learned"
    if basis_inside(config):
        names = ("objective", "snr_clip")
        yield tuple(prefix + name for name in names), "a basis of real-valued tokens"
    else:
        yield (f"{prefix}gains",), "model.tokenizer.kind=basis_fsq"
    if basis.projection != "soft":
        yield (f"{prefix}delta",), "model.basis.projection=soft"
    if basis.objective != "residual":
        yield (f"{prefix}snr_clip",), "model.basis.objective=residual"
    acting = bases.KINDS[made.fixed].fields if made.fixed in bases.KINDS else ()
    for name in dict.fromkeys(name for kind in bases.KINDS.values() for name in kind.fields):
        if name not in acting:
            able = [kind for kind, own in bases.KINDS.items() if name in own.fields]
            yield (f"{prefix}{name}",), f"model.basis.kind={' or '.join(able)}"
    if not (made.has_matrix or basis_inside(config)):
        yield (f"{prefix}inverse",), "a basis that is a matrix"


def _of_tokenizer_training(config: ConfigDict) -> Iterator[tuple[tuple[str, ...], str]]:
    train, loss = config.train_tokenizer, config.train_tokenizer.loss
    prefix = "train_tokenizer."
    if not tokenizers.is_trained(config):
        # A damaged checkpoint is one of imported weights, too.
        names = [name for name in dict(flatten(train)) if name != "on_damaged_checkpoint"]
        yield tuple(prefix + name for name in names), "model.tokenizer.kind=bar_fsq or basis_fsq"
        return
    if train.stage != "full":
        names = ("encoder_learning_rate", "basis_learning_rate")
        yield tuple(prefix + name for name in names), "train_tokenizer.stage=full"
    if not (basis_inside(config) and config.model.basis.kind == bases.LEARNED):
        yield (f"{prefix}basis_learning_rate",), "a learned basis in model.tokenizer.kind=basis_fsq"
    if not loss.gan:
        yield (f"{prefix}discriminator.",), "train_tokenizer.loss.gan above 0"
    if not (loss.gan or loss.gram or loss.convnext):
        yield (f"{prefix}network_size",), "train_tokenizer.loss.convnext, gram or gan above 0"
    for name in train.weights:
        if name not in frozen.needed(config):
            terms = " or ".join(frozen.TERMS[name])
            yield (f"{prefix}weights.{name}",), f"train_tokenizer.loss.{terms} above 0"


def _of_metrics(config: ConfigDict) -> Iterator[tuple[tuple[str, ...], str]]:
    metrics = {*config.evaluate.metrics, *config.train_generator.evaluate_metrics}
    readers = {}
    for metric, kind in KINDS.items():
        for name in kind.fields:
            readers.setdefault(name, []).append(metric)
    for name, able in readers.items():
        if not metrics & {*able}:
            yield (f"evaluate.{name}",), f"{' or '.join(able)} among evaluate.metrics"
