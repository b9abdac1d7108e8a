import asyncio
import os
from collections.abc import Iterator

import pytest

from workers.control import (
    Assignment,
    CommandReader,
    Status,
    StatusWriter,
    Stop,
    decode_status,
    encode_command,
    read_orders,
)

ASSIGNMENT = Assignment(
    role="capture",
    worker="capture-0",
    config="{}",
    session="s",
    cameras=("front",),
    encoders={"front": "ipc://e"},
    listen="",
    publisher="ipc://p",
    board="/tmp/board",
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    for fd in (read_fd, write_fd):
        try:
            os.close(fd)
        except OSError:
            continue


def test_first_command_arrives_whole_even_in_small_pieces(pipe: tuple[int, int]) -> None:
    read_fd, write_fd = pipe
    line = encode_command(ASSIGNMENT)
    os.write(write_fd, line[:10])
    os.write(write_fd, line[10:])
    assert CommandReader(read_fd).wait_first() == ASSIGNMENT


def test_first_command_from_a_supervisor_that_died_is_an_eof(pipe: tuple[int, int]) -> None:
    read_fd, write_fd = pipe
    os.close(write_fd)
    with pytest.raises(EOFError):
        CommandReader(read_fd).wait_first()


async def test_orders_end_with_a_stop_when_the_supervisor_goes_away(pipe: tuple[int, int]) -> None:
    read_fd, write_fd = pipe
    os.write(write_fd, encode_command(ASSIGNMENT))
    os.close(write_fd)
    async with asyncio.timeout(5):
        assert [order async for order in read_orders(CommandReader(read_fd))] == [ASSIGNMENT, Stop(grace_s=1.0)]


def test_status_of_a_library_that_prints_is_none() -> None:
    assert decode_status(b"hello from a library\n") is None


def test_status_round_trip(pipe: tuple[int, int]) -> None:
    read_fd, write_fd = pipe
    StatusWriter(write_fd).send(Status("alive", progress=7))
    assert decode_status(os.read(read_fd, 100)) == Status("alive", progress=7)


def test_status_to_a_supervisor_that_is_gone_is_no_error(pipe: tuple[int, int]) -> None:
    read_fd, write_fd = pipe
    os.close(read_fd)
    StatusWriter(write_fd).send(Status("alive"))


def test_commands_after_the_first_never_block(pipe: tuple[int, int]) -> None:
    read_fd, write_fd = pipe
    os.write(write_fd, encode_command(ASSIGNMENT))
    reader = CommandReader(read_fd)
    reader.wait_first()
    assert reader.read_available() == []
    assert not reader.closed
