"""The small steps of a gated pass between its matrix products, each one pass over memory.

Written twice: in plain numpy (`plain`), and as loops that numba compiles where it is installed. Eager tensor operations cost
three to five times as much here: a gate is nine of them, each a walk over (N, D), and a pass has four gates a block.

Inner loops walk along rows that were taken out before: an index that came from an array may be negative, and a check for
that inside a loop keeps it from vector registers. Assigning whole rows costs three times as much.
"""

import numpy as np

from encoders_core.realtime.compiling import compiled
from encoders_core.realtime.tokens import plain
from encoders_core.realtime.tokens.plain import (
    MOVED,
    SHORTEST,
    SLOPE_RATE,
    AttentionWatch,
    Floats,
    Indices,
    Norm,
)


def _copy(source: Floats, target: Floats) -> None:
    for column in range(target.shape[0]):
        target[column] = source[column]


def _store(output: Floats, indices: Indices, rows: Floats) -> None:
    for place in range(indices.shape[0]):
        copy(rows[place], output[indices[place]])


def _settle(x: Floats, output: Floats, indices: Indices, rows: Floats) -> None:
    for place in range(indices.shape[0]):
        copy(rows[place], output[indices[place]])
    for row in range(x.shape[0]):
        tokens, added = x[row], output[row]
        for column in range(x.shape[1]):
            tokens[column] += added[column]


def _measure(x: Floats, norm: Norm, reference: Floats, normed: Floats) -> Floats:
    count, dim = x.shape
    change = np.empty(count, np.float32)
    for row in range(count):
        total = np.float32(0)
        for column in range(dim):
            total += x[row, column]
        mean = total / np.float32(dim)
        total = np.float32(0)
        for column in range(dim):
            total += (x[row, column] - mean) * (x[row, column] - mean)
        scale = np.float32(1.0) / np.float32(np.sqrt(total / np.float32(dim) + np.float32(norm.eps)))
        total = np.float32(0)
        for column in range(dim):
            value = (x[row, column] - mean) * scale * norm.weight[column] + norm.bias[column]
            normed[row, column] = value
            total += (value - reference[row, column]) * (value - reference[row, column])
        change[row] = np.sqrt(total)
    return change


def _measure_both(x: Floats, norm: Norm, first: Floats, second: Floats, normed: Floats) -> Floats:
    count, dim = x.shape
    change = np.empty((2, count), np.float32)
    for row in range(count):
        total = np.float32(0)
        for column in range(dim):
            total += x[row, column]
        mean = total / np.float32(dim)
        total = np.float32(0)
        for column in range(dim):
            total += (x[row, column] - mean) * (x[row, column] - mean)
        scale = np.float32(1.0) / np.float32(np.sqrt(total / np.float32(dim) + np.float32(norm.eps)))
        total, other = np.float32(0), np.float32(0)
        for column in range(dim):
            value = (x[row, column] - mean) * scale * norm.weight[column] + norm.bias[column]
            normed[row, column] = value
            total += (value - first[row, column]) * (value - first[row, column])
            other += (value - second[row, column]) * (value - second[row, column])
        change[0, row], change[1, row] = np.sqrt(total), np.sqrt(other)
    return change


def _select(change: Floats, limit: Floats, age: Floats, rows: Indices, forced: Indices) -> Indices:
    due = np.zeros(limit.shape[0], np.bool_)
    for place in range(forced.shape[0]):
        due[forced[place]] = True
    chosen, count = np.empty(change.shape[0], np.int64), 0
    for place in range(change.shape[0]):
        row = rows[place]
        if due[row] or limit[row] < 0 or change[place] * np.sqrt(np.sqrt(age[row])) > limit[row]:
            chosen[count] = place
            count += 1
    return chosen[:count].copy()


def _due(watch: AttentionWatch, limit: Floats, age: Floats, asked: Indices, forced: Indices) -> Indices:
    needed = np.zeros(limit.shape[0], np.bool_)
    for place in range(asked.shape[0]):
        needed[asked[place]] = True
    for place in range(forced.shape[0]):
        needed[forced[place]] = True
    moved, chosen, count = np.float32(watch.moved[0]), np.empty(limit.shape[0], np.int64), 0
    for row in range(limit.shape[0]):
        expected, grown = watch.drift[row], moved - watch.seen[row]
        if grown > 0:
            expected += watch.slope[row] * grown
        if needed[row] or limit[row] < 0 or expected * np.sqrt(np.sqrt(age[row])) > limit[row]:
            chosen[count] = row
            count += 1
    return chosen[:count].copy()


def _learn_slopes(watch: AttentionWatch, rows: Indices, change: Floats) -> None:
    moved, drift, slope = np.float32(watch.moved[0]), watch.drift, watch.slope
    for place in range(rows.shape[0]):
        row = rows[place]
        grown = max(moved - watch.seen[row], np.float32(0))
        if grown > MOVED:
            found = max(change[place] - drift[row], np.float32(0)) / grown
            slope[row] = found if np.isinf(slope[row]) else slope[row] + SLOPE_RATE * (found - slope[row])
        watch.seen[row], drift[row] = moved, change[place]


def _let_through(source: Floats, places: Indices, reference: Floats, indices: Indices, rows: Floats) -> None:
    for place in range(indices.shape[0]):
        chosen = source[places[place]]
        copy(chosen, rows[place])
        copy(chosen, reference[indices[place]])


def _distances(rows: Floats, reference: Floats, indices: Indices) -> Floats:
    change = np.empty(indices.shape[0], np.float32)
    for place in range(indices.shape[0]):
        total, row, before = np.float32(0), rows[place], reference[indices[place]]
        for column in range(rows.shape[1]):
            value = row[column] - before[column]
            total += value * value
        change[place] = np.sqrt(total)
    return change


def _most_urgent(  # noqa: PLR0917  as above
    change: Floats, limit: Floats, age: Floats, rows: Indices, forced: Indices, chosen: Indices, count: int
) -> Indices:
    urgency = np.empty(chosen.shape[0], np.float32)
    for place in range(chosen.shape[0]):
        row = rows[chosen[place]]
        over = change[chosen[place]] * np.sqrt(np.sqrt(age[row])) / max(limit[row], SHORTEST)
        urgency[place] = np.inf if limit[row] < 0 else over
        for index in range(forced.shape[0]):
            if forced[index] == row:
                urgency[place] = np.inf
    kept = np.zeros(chosen.shape[0], np.bool_)
    for _ in range(count):
        best = -1
        for place in range(chosen.shape[0]):
            if not kept[place] and (best < 0 or urgency[place] > urgency[best]):
                best = place
        kept[best] = True
    found, places = np.empty(count, np.int64), 0
    for place in range(chosen.shape[0]):
        if kept[place]:
            found[places] = chosen[place]
            places += 1
    return found


def _grow_older(age: Floats, rows: Indices, chosen: Indices) -> None:
    for row in range(age.shape[0]):
        age[row] += np.float32(1)
    for place in range(chosen.shape[0]):
        age[rows[chosen[place]]] = np.float32(1)


def _settled(watch: AttentionWatch, rows: Indices, chosen: Indices) -> Indices:
    indices = np.empty(chosen.shape[0], np.int64)
    for place in range(chosen.shape[0]):
        indices[place] = rows[chosen[place]]
        watch.drift[indices[place]] = np.float32(0)
    return indices


def _total(change: Floats, chosen: Indices) -> float:
    total = 0.0
    for place in range(chosen.shape[0]):
        total += float(change[chosen[place]])
    return total


copy = compiled(_copy, plain.copy)
store = compiled(_store, plain.store)
settle = compiled(_settle, plain.settle)
measure = compiled(_measure, plain.measure)
measure_both = compiled(_measure_both, plain.measure_both)
select = compiled(_select, plain.select)
due = compiled(_due, plain.due)
learn_slopes = compiled(_learn_slopes, plain.learn_slopes)
let_through = compiled(_let_through, plain.let_through)
distances = compiled(_distances, plain.distances)
most_urgent = compiled(_most_urgent, plain.most_urgent)
grow_older = compiled(_grow_older, plain.grow_older)
settled = compiled(_settled, plain.settled)
total = compiled(_total, plain.total)
