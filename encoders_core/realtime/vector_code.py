"""Three inner steps of attention in LLVM's language, for numba: sums stay in vector registers, which its own loops do not do.

Each is a function that compiled code calls with views of arrays, whose shapes it trusts. LLVM turns the vectors into what
the processor has.
"""

from functools import partial
from typing import Any, Final

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic

LANES: Final = 16 if binding.get_host_cpu_features().get("avx512f") else 8
"""Numbers that are worked on at once."""
ROWS: Final = 8
"""Rows of a product that are summed at once."""
_LOWEST: Final = -1e30
_SMALLEST_EXPONENT: Final = -126.0  # of a float32 that is no denormal
_EXPONENT_BIAS: Final = 127
_FRACTION_BITS: Final = 23
_EXP2: Final = (2.17022491e-4, 1.24396897e-3, 9.67884079e-3, 5.54833421e-2, 0.240229836, 0.693146984, 1.0)
"""Of x^6, x^5, ... 1: 2^x from 0 to 1, relative error 2e-9 before rounding (least squares, weighted until errors are even)."""
_FLOAT_BYTES: Final = 4
_FUSED: Final = ("contract",)

cgutils: Any = untyped_cgutils
_function: Any = intrinsic

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)


class _Code:
    """What the three steps are written in."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def load(self, array: Any, offset: Any) -> Any:
        """`LANES` numbers from `offset` on."""
        return self.builder.load(self._place(array, offset, _FLOATS), align=4)

    def store(self, value: Any, array: Any, offset: Any) -> None:
        """The reverse."""
        self.builder.store(value, self._place(array, offset, _FLOATS), align=4)

    def spread(self, array: Any, offset: Any) -> Any:
        """One number in all lanes."""
        one = self.builder.load(self.builder.gep(array, [offset]), align=4)
        nothing = ir.Constant(_FLOATS, ir.Undefined)
        first = self.builder.insert_element(nothing, one, ir.Constant(_INT, 0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(_INTS, [0] * LANES))

    def sum_of(self, value: Any, factor: Any, other: Any) -> Any:
        """The product of the first two plus the third, rounded once where the processor can."""
        return self.builder.fadd(self.builder.fmul(value, factor, flags=_FUSED), other, flags=_FUSED)

    def larger(self, one: Any, other: Any) -> Any:
        """The larger of each lane; `other` where either is no number."""
        return self.builder.select(self.builder.fcmp_ordered(">", one, other), one, other)

    def variable(self, value: float) -> Any:
        """A vector that a loop changes."""
        return cgutils.alloca_once_value(self.builder, constant(value))

    def exp2(self, power: Any) -> Any:
        """2^power for a power of at most 0: a polynomial of the fraction, the rest put where a float keeps its exponent."""
        power = self.larger(constant(_SMALLEST_EXPONENT), power)
        below = self.builder.fptosi(self.builder.fsub(power, constant(1.0)), _INTS)
        fraction = self.builder.fsub(power, self.builder.sitofp(below, _FLOATS))
        value = constant(_EXP2[0])
        for coefficient in _EXP2[1:]:
            value = self.sum_of(value, fraction, constant(coefficient))
        biased = self.builder.add(below, ir.Constant(_INTS, [_EXPONENT_BIAS] * LANES))
        scale = self.builder.shl(biased, ir.Constant(_INTS, [_FRACTION_BITS] * LANES))
        return self.builder.fmul(value, self.builder.bitcast(scale, _FLOATS))

    def _place(self, array: Any, offset: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(array, [offset]), kind.as_pointer())


def constant(value: float) -> Any:
    """The same number in all lanes."""
    return ir.Constant(_FLOATS, [value] * LANES)


def whole(value: int) -> Any:
    """A plain number."""
    return ir.Constant(_LONG, value)


def _product(width: int) -> Any:
    """The step of a matrix product whose result is `ROWS` by `width` vectors."""

    @_function  # type: ignore[untyped-decorator]
    def product(_context: Any, a: Any, b: Any, c: Any) -> Any:
        """(ROWS, K) a times (K, width LANES) b -> c; the columns of b and c lie side by side, a may lie in any way."""
        return types.void(a, b, c), partial(_emit_product, width)

    return product


def _emit_product(width: int, context: Any, builder: Any, signature: Any, values: Any) -> Any:
    code = _Code(builder)
    a, b, c = (_Matrix(context, builder, kind, value) for kind, value in zip(signature.args, values, strict=True))
    starts = [builder.mul(a.steps[0], whole(row)) for row in range(ROWS)]
    sums = [[code.variable(0.0) for _ in range(width)] for _ in range(ROWS)]
    with cgutils.for_range(builder, a.shape[1]) as loop:
        along, first = builder.mul(a.steps[1], loop.index), builder.mul(b.steps[0], loop.index)
        columns = [code.load(b.data, builder.add(first, whole(LANES * place))) for place in range(width)]
        for start, row in zip(starts, sums, strict=True):
            factor = code.spread(a.data, builder.add(start, along))
            for column, total in zip(columns, row, strict=True):
                builder.store(code.sum_of(factor, column, builder.load(total)), total)
    for number, row in enumerate(sums):
        for place, total in enumerate(row):
            offset = builder.add(builder.mul(c.steps[0], whole(number)), whole(LANES * place))
            code.store(builder.load(total), c.data, offset)
    return context.get_dummy_value()


narrow_product, wide_product = _product(1), _product(2)


@_function  # type: ignore[untyped-decorator]
def softmax(_context: Any, scores: Any, inverse: Any) -> Any:
    """(N, LANES) scores, in place -> 2^(score - the lane's largest); (LANES,) 1 / their sums are left in `inverse`."""
    return types.void(scores, inverse), _emit_softmax


def _emit_softmax(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    code = _Code(builder)
    scores, inverse = (_Matrix(context, builder, *pair) for pair in zip(signature.args, values, strict=True))
    top, total = code.variable(_LOWEST), code.variable(0.0)
    with cgutils.for_range(builder, scores.shape[0]) as loop:
        score = code.load(scores.data, builder.mul(scores.steps[0], loop.index))
        builder.store(code.larger(score, builder.load(top)), top)
    with cgutils.for_range(builder, scores.shape[0]) as loop:
        place = builder.mul(scores.steps[0], loop.index)
        power = code.exp2(builder.fsub(code.load(scores.data, place), builder.load(top)))
        code.store(power, scores.data, place)
        builder.store(builder.fadd(builder.load(total), power), total)
    code.store(builder.fdiv(constant(1.0), builder.load(total)), inverse.data, whole(0))
    return context.get_dummy_value()


class _Matrix:
    """A float32 array as compiled code sees it: where it begins, its shape, and its steps counted in numbers."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.data, self.shape = array.data, cgutils.unpack_tuple(builder, array.shape)
        self.steps = [builder.sdiv(step, whole(_FLOAT_BYTES)) for step in cgutils.unpack_tuple(builder, array.strides)]
