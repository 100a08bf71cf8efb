"""What is wrong with a basis and what goes with it: tokens, generator and head."""

from ml_collections import ConfigDict

from bar_jax.config import basis_inside, real_valued, token_grid
from bar_jax.runtime.errors import InputError

DIFFUSION_STEPS = 1000  # noise levels of the diffusion head


def validate_basis(config: ConfigDict) -> None:
    """Checks that tokens, basis, generator and head go together.

    Raises:
      InputError: naming the first wrong field, what was found and what was expected.
    """
    from bar_jax import bases  # imports JAX, which no other check needs

    basis, kind = config.model.basis, config.model.generator.kind
    if real_valued(config):
        kinds = (*bases.PERMUTATIONS, *bases.MATRICES, bases.LEARNED)
        heads = {"xar": ("flow",)}.get(kind, ("diffusion",))
    else:
        if kind != "causal":
            made = config.model.tokenizer.kind
            expected = f"causal: model.tokenizer.kind={made} makes bits; or kl_vae, pixels"
            raise InputError("model.generator.kind", repr(kind), expected)
        kinds, heads = (*bases.ORDERS, bases.RANDOM), ("masked_bit", "bit", "linear")
        if basis_inside(config):
            kinds = (*bases.MATRICES, bases.LEARNED)
    tokens = config.model.tokenizer.kind
    for name, found, choices in (
        ("model.basis.kind", basis.kind, kinds),
        ("model.basis.init", basis.init, bases.MATRICES),
        ("model.head.kind", config.model.head.kind, heads),
    ):
        if found not in choices:
            given = f"{found!r} for {kind} and the tokens of {tokens}"
            raise InputError(name, given, " | ".join(dict.fromkeys(choices)))
    rows = token_grid(config)[0] // config.model.generator.patch_size
    length = bases.make_basis(config).length((rows, rows))
    if real_valued(config):
        _validate_host(config, rows, length, bases.LEARNED, bases.RANDOM)
    _validate_basis_tokens(config, length)


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
        if generator.rope == "1d" and generator.kind != "causal":
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


def _validate_host(config: ConfigDict, rows: int, length: int, learned: str, random: str) -> None:
    """Checks a generator of real-valued tokens, `rows` x `rows` of them in `length` rows of A."""
    basis, generator = config.model.basis, config.model.generator
    kind = generator.kind
    if basis.kind == random and kind != "causal":
        expected = f"another: {kind} is not told where a token belongs; causal is"
        raise InputError("model.basis.kind", repr(random), expected)
    if kind == "xar":
        if length != rows**2:
            fixed = basis.init if basis.kind == learned else basis.kind
            found = f"{fixed!r} with {length} rows for {rows**2} tokens"
            expected = "as many rows as tokens for xar; mar and causal take any number"
            raise InputError("model.basis.kind", found, expected)
        if rows % generator.cell_size:
            found = f"{generator.cell_size}"
            expected = f"a divisor of the grid, {rows} x {rows}"
            raise InputError("model.generator.cell_size", found, expected)
    residual = basis.kind == learned and basis.objective == "residual"
    if residual and not generator.shared_time:
        found = "False with model.basis.objective=residual"
        expected = "True, one time for all tokens of an image; or objective=bar"
        raise InputError("model.generator.shared_time", found, expected)
    if kind == "mar" and config.sample.iterations > length:
        expected = f"1 to {length}, the tokens to be revealed"
        raise InputError("sample.iterations", f"{config.sample.iterations}", expected)
    if kind != "xar" and config.sample.steps > DIFFUSION_STEPS:
        expected = f"1 to {DIFFUSION_STEPS}, the noise levels of training"
        raise InputError("sample.steps", f"{config.sample.steps}", expected)
