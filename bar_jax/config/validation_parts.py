"""Whether the configured tokenizer, basis, generator and head go together.

What each can do stands with its kind (KINDS of its room), and so do the rules of one part alone.
"""

from ml_collections import ConfigDict

from bar_jax import bases, generators, heads, tokenizers
from bar_jax.generators.kind import rows_of_basis, written_grid, written_width
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import basis_inside, real_valued


def validate_parts(config: ConfigDict) -> None:
    """Checks each part, and that they go together.

    Raises:
      InputError: naming the first wrong field, what was found and what was expected.
    """
    model = config.model
    tokenizer = tokenizers.kind_of(config)
    generator = generators.KINDS[model.generator.kind]
    head = heads.KINDS[model.head.kind]
    _check_trained(config, tokenizer.untrained)
    tokenizer.check(config)
    if not (generator.writes_bits if tokenizer.makes_bits else generator.writes_numbers):
        _refuse_tokens(config, tokenizer.makes_bits)
    for name, found, choices in (
        ("model.basis.kind", model.basis.kind, _bases_of(config)),
        ("model.basis.init", model.basis.init, bases.kinds_to_start_from()),
        ("model.head.kind", model.head.kind, _heads_of(generator, tokenizer.makes_bits)),
    ):
        if found not in choices:
            given = f"{found!r} for {model.generator.kind} and the tokens of {model.tokenizer.kind}"
            raise InputError(name, given, " | ".join(dict.fromkeys(choices)))
    length = rows_of_basis(config)
    if model.basis.kind == bases.RANDOM and not generator.takes_order:
        able = [kind for kind, other in generators.KINDS.items() if other.takes_order]
        expected = f"another: {model.generator.kind} does not know where a token belongs; "
        raise InputError(
            "model.basis.kind", repr(bases.RANDOM), f"{expected}{' | '.join(able)} does"
        )
    generator.check(config, written_grid(config)[0], length)
    _check_times(config)
    head.check(config, written_width(config))
    _validate_basis_tokens(config, length)


def _check_trained(config: ConfigDict, untrained: str) -> None:
    """Refuses to train a tokenizer that has nothing to train here."""
    benchmarks = config.job == "benchmark" and "tokenizer_training" in config.benchmark.parts
    if untrained and (config.job == "train_tokenizer" or benchmarks):
        kind = config.model.tokenizer.kind
        raise InputError("model.tokenizer.kind", repr(kind), f"'bar_fsq' to train: {untrained}")


def _refuse_tokens(config: ConfigDict, bits: bool) -> None:
    """Tells of a generator that cannot model the configured tokens."""
    kinds = generators.KINDS.items()
    able = [kind for kind, k in kinds if (k.writes_bits if bits else k.writes_numbers)]
    others = [kind for kind, k in tokenizers.KINDS.items() if k.makes_bits != bits]
    made = f"model.tokenizer.kind={config.model.tokenizer.kind}"
    expected = f"{' | '.join(able)}: {made} makes {'bits' if bits else 'real numbers'}"
    found = repr(config.model.generator.kind)
    raise InputError("model.generator.kind", found, f"{expected}; or {', '.join(others)}")


def _bases_of(config: ConfigDict) -> tuple[str, ...]:
    """The kinds of basis that go with the tokens."""
    matrices = (*bases.kinds_to_start_from(), bases.LEARNED)
    if basis_inside(config):
        return matrices
    if real_valued(config):
        return (*matrices, bases.RANDOM)
    return (*bases.kinds_of_orders(), bases.RANDOM)


def _heads_of(generator: generators.GeneratorKind, bits: bool) -> tuple[str, ...]:
    """The kinds of head that write the tokens of a generator."""
    if generator.heads is not None:
        return generator.heads
    return tuple(k for k, head in heads.KINDS.items() if head.make and head.writes_bits == bits)


def _check_times(config: ConfigDict) -> None:
    basis = config.model.basis
    residual = basis.kind == bases.LEARNED and basis.objective == "residual"
    if real_valued(config) and residual and not config.model.generator.shared_time:
        found = "False with model.basis.objective=residual"
        expected = "True, one time for all tokens of an image; or objective=bar"
        raise InputError("model.generator.shared_time", found, expected)


def _validate_basis_tokens(config: ConfigDict, length: int) -> None:
    """Checks what goes with a basis inside the tokenizer, of `length` rows, and with no other."""
    loss, sample, generator = config.train_tokenizer.loss, config.sample, config.model.generator
    if not basis_inside(config):
        for name, value in (
            ("train_tokenizer.loss.residual", loss.residual),
            ("train_tokenizer.loss.prefix", loss.prefix),
            ("sample.tokens", sample.tokens),
        ):
            if value:
                expected = "0, or model.tokenizer.kind=basis_fsq: other tokens are no coefficients"
                raise InputError(name, str(value), expected)
        if generator.rope == "1d" and "rope" not in generators.KINDS[generator.kind].fields:
            expected = f"'2d': {generator.kind} knows no other"
            raise InputError("model.generator.rope", "'1d'", expected)
        return
    no_place = "basis tokens have no place in the image"
    for name, value, expected in (
        ("model.generator.rope", generator.rope, "1d"),
        ("model.generator.patch_size", generator.patch_size, 1),
        ("sample.order", sample.order, "basis"),
        ("sample.keep", sample.keep, "none"),
    ):
        if value != expected:
            raise InputError(name, repr(value), f"{expected!r}: {no_place}")
    if config.data.source == "tokens":
        expected = "a data.source of images: published tokens are those of bar_fsq"
        raise InputError("model.tokenizer.kind", "'basis_fsq' with data.source=tokens", expected)
