"""Functions over rows of numbers in LLVM's language: softmax, and the activations of a feed-forward.

Compiled code calls them with arrays whose shapes they trust.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from numba import types

from encoders_core.realtime.tokens.product_code import WIDE
from encoders_core.realtime.tokens.vector_code import LANES, Code, Matrix, cgutils, constant, function, whole

_LOWEST: Final = -1e30
_LOG2_E: Final = 1.4426950408889634
_ERF_SLOPE: Final = 0.3275911 / 2**0.5
_ERF: Final = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""Of t^5, ... t with t = 1 / (1 + slope |x|): erfc, absolute error 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
_TANH: Final = (1.5957691216057308, 0.044715)
"""2 sqrt(2 / pi) (x + .044715 x^3): twice what GELU's approximation takes the tanh of."""
_QUICK: Final = 1.702


@function  # type: ignore[untyped-decorator]
def softmax(_context: Any, scores: Any, column: Any, inverse: Any) -> Any:
    """`LANES` columns of (N, M) scores from `column` on -> 2^(score - the column's largest), in place.

    1 / the sum of each is left in the same columns of (1, M) `inverse`.
    """
    return types.void(scores, column, inverse), _emit_softmax


def _emit_softmax(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    code, column = Code(builder), values[1]
    scores, inverse = (Matrix(context, builder, signature.args[place], values[place]) for place in (0, 2))
    top, total = code.variable(_LOWEST), code.variable(0.0)
    with cgutils.for_range(builder, scores.shape[0]) as loop:
        score = code.load(scores.data, scores.at(loop.index, column))
        builder.store(code.larger(score, builder.load(top)), top)
    with cgutils.for_range(builder, scores.shape[0]) as loop:
        place = scores.at(loop.index, column)
        power = code.exp2(builder.fsub(code.load(scores.data, place), builder.load(top)))
        code.store(power, scores.data, place)
        builder.store(builder.fadd(builder.load(total), power), total)
    code.store(builder.fdiv(constant(1.0), builder.load(total)), inverse.data, column)
    return context.get_dummy_value()


def _activation(emit: Callable[[Code, Any], Any]) -> Any:
    """`emit` of each number of a panel's width."""

    @function  # type: ignore[untyped-decorator]
    def activation(_context: Any, rows: Any, row: Any, column: Any) -> Any:
        """Row `row` of (M, N) rows from `column` on, in place."""
        return types.void(rows, row, column), partial(_emit_activation, emit)

    return activation


def _emit_activation(emit: Callable[[Code, Any], Any], context: Any, builder: Any, signature: Any, values: Any) -> Any:
    code, rows = Code(builder), Matrix(context, builder, signature.args[0], values[0])
    start = rows.at(values[1], values[2])
    for place in range(0, WIDE, LANES):
        offset = builder.add(start, whole(place))
        code.store(emit(code, code.load(rows.data, offset)), rows.data, offset)
    return context.get_dummy_value()


def _emit_relu(code: Code, x: Any) -> Any:
    below = code.builder.fcmp_ordered("<", x, constant(0.0))  # what is no number stays none
    return code.builder.select(below, constant(0.0), x)


def _emit_gelu(code: Code, x: Any) -> Any:
    """max(x, 0) - |x| erfc(|x| / sqrt 2) / 2."""
    builder = code.builder
    size = code.larger(x, builder.fneg(x))
    t = builder.fdiv(constant(1.0), code.sum_of(size, constant(_ERF_SLOPE), constant(1.0)))
    tail = constant(_ERF[0])
    for coefficient in _ERF[1:]:
        tail = code.sum_of(tail, t, constant(coefficient))
    power = code.exp2(builder.fmul(builder.fmul(x, x), constant(-_LOG2_E / 2)))
    left = builder.fmul(builder.fmul(builder.fmul(tail, t), power), builder.fmul(size, constant(0.5)))
    return builder.fsub(code.larger(x, constant(0.0)), left)


def _emit_gelu_tanh(code: Code, x: Any) -> Any:
    builder = code.builder
    cube = code.sum_of(builder.fmul(x, x), constant(_TANH[1]), constant(1.0))
    return _let_through(code, x, builder.fmul(builder.fmul(x, cube), constant(_TANH[0])))


def _emit_quick_gelu(code: Code, x: Any) -> Any:
    return _let_through(code, x, code.builder.fmul(x, constant(_QUICK)))


def _let_through(code: Code, x: Any, by: Any) -> Any:
    """What a sigmoid of `by` lets through of x, where both have one sign: no exponential of anything above 0."""
    builder = code.builder
    size = code.larger(by, builder.fneg(by))
    power = code.exp2(builder.fmul(size, constant(-_LOG2_E)))
    above = builder.select(builder.fcmp_ordered(">", x, constant(0.0)), x, builder.fmul(x, power))
    return builder.fdiv(above, builder.fadd(power, constant(1.0)))


gelu, gelu_tanh, quick_gelu, relu = map(_activation, (_emit_gelu, _emit_gelu_tanh, _emit_quick_gelu, _emit_relu))
