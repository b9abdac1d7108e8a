"""The inner steps of matrix products, in LLVM's language: sums of a few rows and columns at once, in registers.

Compiled code calls them with arrays whose shapes they trust.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from llvmlite import ir
from numba import types

from encoders_core.realtime.tokens.vector_code import LANES, Code, Matrix, cgutils, function, whole

MOST_ROWS: Final = 12 if LANES > 8 else 6  # as many sums as such registers hold
"""Rows that a step sums at most; the more, the less it reads for what it sums."""
WIDE: Final = 2 * LANES
"""Columns of a wide step; a narrow one has half as many."""
_BYTE: Final = ir.IntType(8).as_pointer()
_LINE: Final = 16
"""Numbers that memory gives at once."""


def _product(width: int, beside: int) -> Any:
    """The step for so many columns; `beside` is the axis along which a's numbers lie side by side."""

    @function  # type: ignore[untyped-decorator]
    def product(  # noqa: PLR0917  as numba takes them
        _context: Any, a: Any, row: Any, rows: Any, b: Any, column: Any, c: Any, to_row: Any, to_column: Any
    ) -> Any:
        """`rows` of (M, K) a from `row` on times columns of (K, N) b from `column` on -> c, from there on.

        Columns of b and c lie side by side.
        """
        return types.void(a, row, rows, b, column, c, to_row, to_column), partial(_emit_product, width, beside)

    return product


def _emit_product(  # noqa: PLR0917  as above
    width: int, beside: int, context: Any, builder: Any, signature: Any, values: Any
) -> Any:
    a = Matrix(context, builder, signature.args[0], values[0], beside=beside)
    b, c = (Matrix(context, builder, signature.args[place], values[place]) for place in (3, 5))
    _, row, rows, _, column, _, to_row, to_column = values

    def emit(number: int) -> None:
        sums = _Sums(builder, number, width)
        with cgutils.for_range(builder, a.shape[1]) as loop:
            sums.add(a, row, loop.index, b.at(loop.index, column), b)
        sums.store(c, to_row, to_column)

    _emit_by_number(builder, rows, emit)
    return context.get_dummy_value()


@function  # type: ignore[untyped-decorator]
def layer_product(  # noqa: PLR0917  as above
    _context: Any,
    a: Any,
    row: Any,
    rows: Any,
    panel: Any,
    bias: Any,
    c: Any,
    column: Any,
    ahead: Any,
    pace: Any,
    later: Any,
    later_pace: Any,
) -> Any:
    """`rows` from `row` on of (M, K) a times (K, WIDE) panel + bias -> the same rows of (M, N) c, from `column` on.

    With few rows a layer takes about as long as reading its weights, and here both happen at once: at number k of a row,
    memory is asked for what lies `ahead` + k `pace` numbers behind the panel's begin, and at `later` + k `later_pace`.
    """
    kinds = a, row, rows, panel, bias, c, column, ahead, pace, later, later_pace
    return types.void(*kinds), _emit_layer_product


def _emit_layer_product(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    a, panel, bias, c = (Matrix(context, builder, signature.args[place], values[place]) for place in (0, 3, 4, 5))
    _, row, rows, *_, column, ahead, pace, later, later_pace = values

    def emit(number: int) -> None:
        sums = _Sums(builder, number, WIDE)
        sums.begin(bias, column)
        with cgutils.for_range(builder, a.shape[1]) as loop:
            start = builder.add(ahead, builder.mul(loop.index, pace))
            for line in range(0, WIDE, _LINE):
                _ask_for(builder, builder.gep(panel.data, [builder.add(start, whole(line))]))
            _ask_for(builder, builder.inttoptr(builder.add(later, builder.mul(loop.index, later_pace)), _BYTE))
            sums.add(a, row, loop.index, panel.at(loop.index, whole(0)), panel)
        sums.store(c, row, column)

    _emit_by_number(builder, rows, emit)
    return context.get_dummy_value()


def _emit_by_number(builder: Any, number: Any, emit: Callable[[int], None]) -> None:
    """Code for each number of rows up to the most, of which one is run."""
    behind = builder.append_basic_block("behind")
    choice = builder.switch(number, behind)
    for known in range(1, MOST_ROWS + 1):
        block = builder.append_basic_block(f"rows{known}")
        choice.add_case(whole(known), block)
        builder.position_at_end(block)
        emit(known)
        builder.branch(behind)
    builder.position_at_end(behind)


def _ask_for(builder: Any, place: Any) -> None:
    """Have memory bring what lies there; where nothing lies nothing happens."""
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [_BYTE, number, number, number])
    ask = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE], kind)
    reading, near, data = (ir.Constant(number, value) for value in (0, 2, 1))
    builder.call(ask, [builder.bitcast(place, _BYTE), reading, near, data])


class _Sums:
    """What a step holds in registers: `rows` by `width` sums."""

    def __init__(self, builder: Any, rows: int, width: int) -> None:
        self._builder, self._code = builder, Code(builder)
        self._vectors = range(0, width, LANES)
        self._sums = [[self._code.variable(0.0) for _ in self._vectors] for _ in range(rows)]

    def begin(self, bias: Matrix, column: Any) -> None:
        """Each row with the same numbers in place of 0."""
        for place, start in enumerate(self._vectors):
            first = self._code.load(bias.data, self._builder.add(column, whole(start)))
            for sums in self._sums:
                self._builder.store(first, sums[place])

    def add(self, a: Matrix, row: Any, number: Any, start: Any, b: Matrix) -> None:
        """Column `number` of `a` from `row` on, times the numbers of `b` from `start` on."""
        weights = [self._code.load(b.data, self._builder.add(start, whole(place))) for place in self._vectors]
        for below, sums in enumerate(self._sums):
            factor = self._code.spread(a.data, a.at(self._builder.add(row, whole(below)), number))
            for weight, total in zip(weights, sums, strict=True):
                self._builder.store(self._code.sum_of(factor, weight, self._builder.load(total)), total)

    def store(self, c: Matrix, row: Any, column: Any) -> None:
        """To `c`, from there on."""
        for below, sums in enumerate(self._sums):
            begin = c.at(self._builder.add(row, whole(below)), column)
            for place, total in zip(self._vectors, sums, strict=True):
                self._code.store(self._builder.load(total), c.data, self._builder.add(begin, whole(place)))


score_narrow, score_wide = (_product(width, beside=1) for width in (LANES, WIDE))
weigh_narrow, weigh_wide = (_product(width, beside=0) for width in (LANES, WIDE))
