"""The turns of a gated pass between its products, made of small steps.

Compiled whole where numba is installed: a call from Python costs as much as a small step.
"""

from encoders_core.realtime.compiling import compiled
from encoders_core.realtime.tokens.kernels import (
    distances,
    due,
    grow_older,
    learn_slopes,
    let_through,
    measure,
    measure_both,
    most_urgent,
    select,
    settled,
    total,
)
from encoders_core.realtime.tokens.plain import AttentionWatch, Floats, GateMemory, Indices, Norm, Rules

_QUERY, _KV, _PROJ, _MLP = range(4)  # places of the gates in limits and ages, in the order of `GATES`


def _take(change: Floats, gate: int, rules: Rules, rows: Indices) -> tuple[Indices, bool]:
    """(M,) lengths of change of `rows` -> indices into them that `gate` lets through; whether the cap left some behind.

    Those over their limits, under a cap the most urgent of them. All rows grow older by a pass, these are young again.
    """
    limit, age = rules.limits[gate], rules.ages[gate]
    chosen = select(change, limit, age, rows, rules.forced)
    cut = rules.cap >= 0 and chosen.shape[0] > rules.cap
    if cut:
        chosen = most_urgent(change, limit, age, rows, rules.forced, chosen, rules.cap)
    grow_older(age, rows, chosen)
    return chosen, cut


def _open_gate(  # noqa: PLR0917  as above
    x: Floats, norm: Norm, memory: GateMemory, gate: int, rules: Rules, normed: Floats, into: Floats
) -> tuple[Indices, bool]:
    """A gate behind a norm: the rows it lets through, laid side by side in `into`, and whether the cap left some."""
    chosen, cut = take(measure(x, norm, memory.reference, normed), gate, rules, rules.every)
    let_through(normed, chosen, memory.reference, chosen, into[: chosen.shape[0]])
    return chosen, cut


def _open_attention(  # noqa: PLR0917  as above
    x: Floats,
    norm: Norm,
    kv: GateMemory,
    query: GateMemory,
    rules: Rules,
    normed: Floats,
    kv_into: Floats,
    query_into: Floats,
) -> tuple[Indices, Indices, float, bool]:
    """The gates of keys and values and of queries, which share a norm; how far the inputs moved that the first lets through."""
    change = measure_both(x, norm, kv.reference, query.reference, normed)
    opened, cut = take(change[0], _KV, rules, rules.every)
    asked, fewer = take(change[1], _QUERY, rules, rules.every)
    let_through(normed, opened, kv.reference, opened, kv_into[: opened.shape[0]])
    let_through(normed, asked, query.reference, asked, query_into[: asked.shape[0]])
    return opened, asked, total(change[0], opened), cut or fewer


def _rows_to_look_at(watch: AttentionWatch, asked: Indices, rules: Rules) -> Indices:
    """Rows whose query changed -> all rows of attention to look at: these, and those that may have moved too far."""
    return due(watch, rules.limits[_PROJ], rules.ages[_PROJ], asked, rules.forced)


def _open_projection(  # noqa: PLR0917  as above
    looked: Floats, rows: Indices, memory: GateMemory, watch: AttentionWatch, rules: Rules, into: Floats
) -> tuple[Indices, bool]:
    """The gate of the projection: of `rows`, whose attention is (M, D) `looked`, those let through, and what looking showed."""
    change = distances(looked, memory.reference, rows)
    chosen, cut = take(change, _PROJ, rules, rows)
    learn_slopes(watch, rows, change)
    indices = settled(watch, rows, chosen)
    let_through(looked, chosen, memory.reference, indices, into[: chosen.shape[0]])
    return indices, cut


# In the order in which they call each other.
take = compiled(_take, _take)
open_gate = compiled(_open_gate, _open_gate)
open_attention = compiled(_open_attention, _open_attention)
rows_to_look_at = compiled(_rows_to_look_at, _rows_to_look_at)
open_projection = compiled(_open_projection, _open_projection)
