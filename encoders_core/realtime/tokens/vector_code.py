"""Vectors in LLVM's language, for numba: what its own loops do not do, sums in registers above all, is written in these words.

LLVM turns the vectors into what the processor has.
"""

from typing import Any, Final

from llvmlite import binding, ir
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic

LANES: Final = 16 if binding.get_host_cpu_features().get("avx512f") else 8
"""Numbers that are worked on at once."""
_SMALLEST_EXPONENT: Final = -126.0  # of a float32 that is no denormal
_EXPONENT_BIAS: Final = 127
_FRACTION_BITS: Final = 23
_EXP2: Final = (2.17022491e-4, 1.24396897e-3, 9.67884079e-3, 5.54833421e-2, 0.240229836, 0.693146984, 1.0)
"""Of x^6, x^5, ... 1: 2^x from 0 to 1, relative error 2e-9 before rounding (least squares, weighted until errors are even)."""
_FLOAT_BYTES: Final = 4
_FUSED: Final = ("contract",)

cgutils: Any = untyped_cgutils
function: Any = intrinsic

_FLOAT, _INT, LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)


class Code:
    """The words."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def load(self, array: Any, offset: Any) -> Any:
        """`LANES` numbers from `offset` on."""
        return self.builder.load(self._place(array, offset, FLOATS), align=4)

    def store(self, value: Any, array: Any, offset: Any) -> None:
        """The reverse."""
        self.builder.store(value, self._place(array, offset, FLOATS), align=4)

    def spread(self, array: Any, offset: Any) -> Any:
        """One number in all lanes."""
        one = self.builder.load(self.builder.gep(array, [offset]), align=4)
        nothing = ir.Constant(FLOATS, ir.Undefined)
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
        fraction = self.builder.fsub(power, self.builder.sitofp(below, FLOATS))
        value = constant(_EXP2[0])
        for coefficient in _EXP2[1:]:
            value = self.sum_of(value, fraction, constant(coefficient))
        biased = self.builder.add(below, ir.Constant(_INTS, [_EXPONENT_BIAS] * LANES))
        scale = self.builder.shl(biased, ir.Constant(_INTS, [_FRACTION_BITS] * LANES))
        return self.builder.fmul(value, self.builder.bitcast(scale, FLOATS))

    def _place(self, array: Any, offset: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(array, [offset]), kind.as_pointer())


def constant(value: float) -> Any:
    """The same number in all lanes."""
    return ir.Constant(FLOATS, [value] * LANES)


def whole(value: int) -> Any:
    """A plain number."""
    return ir.Constant(LONG, value)


class Matrix:
    """A float32 array as compiled code sees it: where it begins, its shape, and its steps counted in numbers.

    `beside` is the axis along which numbers lie side by side: known here, it costs nothing to step along it.
    """

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any, *, beside: int = -1) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self.data, self.shape = array.data, cgutils.unpack_tuple(builder, array.shape)
        self.steps = [builder.sdiv(step, whole(_FLOAT_BYTES)) for step in cgutils.unpack_tuple(builder, array.strides)]
        self.steps[beside] = whole(1)

    def at(self, row: Any, column: Any) -> Any:
        """Where a number lies, counted from the first."""
        return self._builder.add(self._builder.mul(self.steps[0], row), self._builder.mul(self.steps[1], column))
