"""Blocks of memory: never more than there are, never one to two, always back."""

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from lamella.server.uploads.blocks import BLOCK_BYTES, BlockPool, Share


@given(
    n_blocks=st.integers(1, 5),
    n_each=st.integers(1, 5),
    steps=st.lists(st.tuples(st.sampled_from(["takes", "ends"]), st.integers(0, 2)), max_size=30),
)
def test_a_share_has_a_block_exactly_when_it_may(n_blocks, n_each, steps):
    pool = BlockPool(n_blocks, n_each)
    shares = [Share() for _ in range(3)]
    held = [[], [], []]
    for what, who in steps:
        if what == "takes":
            block = pool.take(shares[who], 0)
            is_free = len(held[who]) < n_each and sum(map(len, held)) < n_blocks
            assert (block is not None) == is_free
            if block is not None:
                block.view[:8] = id(block).to_bytes(8, "little")
                held[who].append(block)
            del block
        elif held[who]:
            del held[who][0]
        assert [share.n_blocks for share in shares] == [len(blocks) for blocks in held]
        # Nobody else has written there.
        assert all(
            one.view[:8] == id(one).to_bytes(8, "little") for blocks in held for one in blocks
        )


def test_who_waits_has_the_block_that_comes_back():
    pool = BlockPool(1)
    block = pool.take(Share(), 0)
    found = []
    thread = threading.Thread(target=lambda: found.append(pool.take(Share(), 30)))
    thread.start()
    time.sleep(0.05)
    assert not found
    del block
    thread.join(10)
    assert len(found[0].view) == BLOCK_BYTES


def test_nobody_waits_longer_than_said():
    pool = BlockPool(1)
    block = pool.take(Share(), 0)
    began = time.monotonic()
    assert pool.take(Share(), 0.05) is None
    assert 0.04 < time.monotonic() - began < 5
    assert block is not None


def test_memory_is_used_again_before_new_is_asked_for():
    pool = BlockPool(4)
    pool.take(Share(), 0).view[:5] = b"first"
    assert pool.take(Share(), 0).view[:5] == b"first"
