"""The memory of a token-gated ViT: where it lies, and what the passes ask for in advance."""

import copy
from itertools import pairwise

import numpy as np
import pytest

from encoders_core.models.vit import VitConfig
from encoders_core.realtime.tokens.cache import TokenCache, memory_bytes
from encoders_core.realtime.tokens.memory import PRODUCTS, BlockMemory, TokenMemory, rows_of
from encoders_core.realtime.tokens.plain import Floats

CONFIGS = {
    "class token": VitConfig(img_size=(32, 32), patch_size=16, embed_dim=8, depth=3, num_heads=2, pool="cls"),
    "mean": VitConfig(img_size=(32, 48), patch_size=16, embed_dim=4, depth=2, num_heads=1, pool="mean"),
    "one block": VitConfig(img_size=(16, 16), patch_size=16, embed_dim=4, depth=1, num_heads=1, pool="cls"),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def in_order(block: BlockMemory) -> list[list[Floats]]:
    """What a pass uses in front of, between and behind the products of a block."""
    query, kv, proj, mlp = block.query, block.kv, block.proj, block.mlp
    return [
        [kv.reference, query.reference],
        [kv.output],
        [query.output, proj.reference],
        [proj.output, mlp.reference],
        [mlp.output],
    ]


def address(array: Floats) -> int:
    return array.ctypes.data


@configs
def test_arrays_lie_behind_each_other_in_the_order_of_their_use(config: VitConfig) -> None:
    memory = TokenMemory(config, rows_of(config))
    arrays = [array for block in memory.blocks for use in in_order(block) for array in use if array.size]

    for before, after in pairwise(arrays):
        assert address(after) == address(before) + before.nbytes
    rows, (height, width) = rows_of(config), config.img_size
    at_input = 4 * (rows * config.embed_dim + 2 * (rows - config.prefix)) + 3 * height * width
    assert memory.nbytes == memory_bytes(config) - 4 * 16 * config.depth * rows - at_input


@configs
def test_each_product_asks_for_what_is_used_behind_it(config: VitConfig) -> None:
    blocks = TokenMemory(config, rows_of(config)).blocks

    for number, block in enumerate(blocks):
        uses = in_order(block)[1:]
        if number + 1 < len(blocks):
            uses[-1] = uses[-1] + in_order(blocks[number + 1])[0]
        for product, use in zip(PRODUCTS, uses, strict=True):
            ((start, size),) = block.asks[product]
            assert start == address(use[0]) or use[0].size == 0
            assert size == sum(array.nbytes for array in use)


def test_a_copy_knows_the_same_and_lives_by_itself() -> None:
    cache = TokenCache()
    for number, block in enumerate(cache.begin(CONFIGS["mean"], 7)):
        block.kv.output[:] = number
        block.watch.slope[:], block.watch.moved[:] = 0.5, 3.0
    cache.fill()

    twin = copy.deepcopy(cache)

    assert twin.nbytes == cache.nbytes
    for one, other in zip(twin.blocks, cache.blocks, strict=True):
        np.testing.assert_array_equal(one.kv.output, other.kv.output)
        assert (one.watch.slope[0], one.watch.moved[0]) == (0.5, 3.0)
        assert one.asks["mlp"][0, 0] != other.asks["mlp"][0, 0]
    twin.blocks[0].kv.output[:], twin.blocks[0].watch.seen[:] = 7, 7
    assert not (cache.blocks[0].kv.output == 7).any()
    assert not (cache.blocks[0].watch.seen == 7).any()


def test_a_new_dense_pass_takes_the_same_memory_and_forgets_what_attention_did() -> None:
    cache = TokenCache()
    first = cache.begin(CONFIGS["mean"], 7)
    cache.fill()
    first[0].watch.slope[:] = 1.0
    again, address_before = cache.begin(CONFIGS["mean"], 7), address(first[0].kv.output)

    assert (cache.warm, cache.blocks) == (False, [])
    assert address(again[0].kv.output) == address_before
    assert len(cache.begin(CONFIGS["mean"], 5)[0].kv.output) == 5
    assert np.isinf(again[0].watch.slope).all()


def test_a_dense_pass_ends_only_if_it_began() -> None:
    with pytest.raises(AssertionError, match="did not begin"):
        TokenCache().fill()
