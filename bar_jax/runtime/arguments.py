"""What public functions are given from Python: checked before anything is made of it.

Types and shapes are looked at always, while JAX traces too. Values are looked at where there are
any: inside a jitted program there are none, and whoever feeds one (`data`, `Pipeline`) has looked.
JAX itself would say nothing: an index past the end of a table reads its last row.
"""

import numbers

import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.runtime.errors import InputError

LARGEST = float(np.finfo(np.float32).max)


def array(name: str, value: object, expected: str) -> np.ndarray:
    """An argument as an array of numpy.

    Raises:
      InputError: it is none: rows of different lengths, say.
    """
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        found = f"a {type(value).__name__} that is no array ({' '.join(str(error).split())})"
        raise InputError(name, found, expected) from error


def integer(name: str, value: object) -> int:
    """An argument as an integer of Python, where it is one of Python or numpy.

    Raises:
      InputError: it is none; `True` is none either.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputError(name, repr(value), "an integer")
    return int(value)


def number(name: str, value: object) -> float:
    """An argument as a float, where it is a real number of Python or numpy.

    Raises:
      InputError: it is none (nor is `True`), or is negative or not finite in float32.
    """
    if getattr(value, "ndim", None) == 0:  # a scalar of numpy or JAX
        value = value.item()
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 <= value <= LARGEST:
        raise InputError(name, repr(value), "a number of at least 0")
    return float(value)


def check_labels(labels: jax.Array | np.ndarray, last: int) -> None:
    """Checks labels [B].

    Args:
      last: the largest that there is: a class, or where that may be given, "no class".

    Raises:
      InputError: they are no integers [B], or one is not in 0..last.
    """
    expected = f"integers [B] from 0 to {last}"
    _check_type("labels", labels, (jnp.integer,), expected)
    _check_shape("labels", labels, ("B",), expected)
    _check_values("labels", labels, lambda x: (x >= 0) & (x <= last), expected)


def check_bits(bits: jax.Array | np.ndarray, *shape: int | str) -> None:
    """Checks bits of a shape; a size that is a name may be any.

    Raises:
      InputError: they are no integers, have another shape, or one is neither 0 nor 1.
    """
    expected = f"bits {{0, 1}} {_written(shape)}"
    _check_type("bits", bits, (jnp.integer, jnp.bool_), expected)
    _check_shape("bits", bits, shape, expected)
    _check_values("bits", bits, lambda x: (x == 0) | (x == 1), expected)


def check_numbers(name: str, x: jax.Array | np.ndarray, *shape: int | str) -> None:
    """Checks real numbers of a shape; a size that is a name may be any.

    Integers are none: images of 8 bits would pass for pixels in [-1, 1].

    Raises:
      InputError: they are of another type or shape, or one is not finite.
    """
    expected = f"floating-point numbers {_written(shape)}"
    _check_type(name, x, (jnp.floating,), expected)
    _check_shape(name, x, shape, expected)
    _check_values(name, x, np.isfinite, expected)


def check_scale(name: str, value: jax.Array | float) -> None:
    """Checks a number that scales something: finite and at least 0.

    Raises:
      InputError: it is another, or none.
    """
    known = values(value)
    if known is not None:
        number(name, known if known.ndim == 0 else value)


def check_heads_divide(name: str, width: int, heads: int) -> None:
    """Checks that attention's heads divide the width of a transformer."""
    if width % heads:
        found = f"{heads} heads at width {width}"
        raise InputError(name, found, "a number of heads that divides the width")


def values(x: object) -> np.ndarray | None:
    """The values of an array; None where there are none yet, or other machines have some."""
    if isinstance(x, jax.core.Tracer):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    return np.asarray(x)


def described(x: jax.Array | np.ndarray) -> str:
    """Type and shape: `int32[4, 16]`."""
    return f"{x.dtype}{list(x.shape)}"


def with_range(x: np.ndarray) -> str:
    """Type, shape and values: `int64[4] from -1 to 7`, `float32[2] with 1 that is not finite`."""
    text = described(x)
    if not x.size or x.dtype.kind not in "biuf":
        return text
    bad = np.count_nonzero(~np.isfinite(x))
    return f"{text}, {bad} of it not finite" if bad else f"{text} from {x.min():g} to {x.max():g}"


def _written(shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _check_type(name, x, kinds, expected) -> None:
    if not hasattr(x, "dtype"):
        raise InputError(name, f"a {type(x).__name__}", f"an array: {expected}")
    if not any(jnp.issubdtype(x.dtype, kind) for kind in kinds):
        raise InputError(name, described(x), expected)


def _check_shape(name, x, shape, expected) -> None:
    same = len(shape) == x.ndim and all(
        isinstance(size, str) or size == found for size, found in zip(shape, x.shape, strict=True)
    )
    if not same:
        raise InputError(name, described(x), expected)


def _check_values(name, x, good, expected) -> None:
    known = values(x)
    if known is not None and not np.all(good(known)):
        raise InputError(name, with_range(known), expected)
