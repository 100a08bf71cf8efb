"""Floating-point operations of a program, counted in what JAX traced of it."""

import math
from collections.abc import Callable, Iterator

import jax


def product_flops(function: Callable, *args: object) -> int:
    """Operations of a program's matrix products and convolutions, two per multiply-add.

    As it is written: with what rematerialisation computes again, with each step of a scan, and of a
    condition with its most expensive branch. The compiler may leave out what nothing reads.

    Args:
      function, args: what to trace; shapes are enough.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> int:
    return sum(map(_operations, jaxpr.eqns))


def _operations(equation) -> int:
    name, params = equation.primitive.name, equation.params
    shapes = [getattr(variable.aval, "shape", ()) for variable in equation.invars]
    output = math.prod(getattr(equation.outvars[0].aval, "shape", ())) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * output * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, outputs = shapes[1], params["dimension_numbers"].rhs_spec[0]
        return 2 * output * math.prod(kernel) // kernel[outputs]
    inner = [_count(jaxpr) for jaxpr in _inside(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    return max(inner) if name == "cond" else sum(inner)


def _inside(params: dict) -> Iterator:
    """The programs that an equation holds."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
