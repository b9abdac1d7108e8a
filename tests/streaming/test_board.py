import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streaming.board import AccountBoard
from streaming.errors import StreamingError
from streaming.frames import DROP_CAUSES

COUNTING_WORKER = """
import sys
from pathlib import Path
from streaming.board import AccountBoard
row = AccountBoard.open(Path(sys.argv[1])).row("front")
total = row.captured
while True:
    total += 1
    row.captured = total
    if total % 1000 == 0:
        print(total, flush=True)
"""


def test_board_shows_in_one_mapping_what_another_wrote(tmp_path: Path) -> None:
    with AccountBoard.create(tmp_path / "board", 4) as supervisor, AccountBoard.open(tmp_path / "board") as worker:
        supervisor.allocate("front")
        supervisor.allocate("back")
        worker.row("back").captured = 12
        worker.row("front").drop("paced", 3)
        worker.row("front")["encoded"] = 1 << 40
        assert supervisor.row("back").captured == 12
        assert supervisor.totals("front") == dict.fromkeys(
            ("captured", "accounted", "encoded", "held", "published", *DROP_CAUSES), 0
        ) | {"paced": 3, "encoded": 1 << 40}


def test_board_keeps_the_count_of_a_killed_worker(tmp_path: Path) -> None:
    path = tmp_path / "board"
    with AccountBoard.create(path) as board:
        row = board.allocate("front")
        reached = 0
        for _ in range(2):
            worker = subprocess.Popen([sys.executable, "-c", COUNTING_WORKER, str(path)], stdout=subprocess.PIPE)
            assert worker.stdout is not None
            said = int(worker.stdout.readline())
            worker.send_signal(signal.SIGKILL)
            worker.communicate(timeout=10)
            # It went on from where the one before it was killed, and nothing that it counted is lost.
            assert row.captured >= said > reached
            reached = row.captured


def test_board_rows_are_found_again_and_start_at_zero_when_reused(tmp_path: Path) -> None:
    with AccountBoard.create(tmp_path / "board", 2) as board:
        board.allocate("front").captured = 5
        assert board.allocate("front").captured == 5
        board.allocate("a" * 64)["held"] = 9
        with pytest.raises(StreamingError, match="no room for camera 'third': the board has 2 rows"):
            board.allocate("third")
        board.free("a" * 64)
        board.free("never-there")
        assert board.allocate("third")["held"] == 0
        assert board.cameras() == ["front", "third"]
        with pytest.raises(KeyError, match="camera 'aaaa"):
            board.row("a" * 64)
        with pytest.raises(ValueError, match="1 to 64 bytes"):
            board.allocate("")


def test_board_takes_the_place_of_an_old_one_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "board"
    with AccountBoard.create(path) as old:
        old.allocate("front")
        with AccountBoard.create(path) as new:
            assert new.cameras() == []
            assert old.cameras() == ["front"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["board"]


def test_board_open_refuses_what_is_not_a_board(tmp_path: Path) -> None:
    with pytest.raises(StreamingError, match=r"cannot open the account board .*No such file.*is the daemon running"):
        AccountBoard.open(tmp_path / "board")
    (tmp_path / "board").write_bytes(b"x" * 100)
    with pytest.raises(StreamingError, match="expected an account board of this version"):
        AccountBoard.open(tmp_path / "board")
    with AccountBoard.create(tmp_path / "board"):
        os.truncate(tmp_path / "board", 4096)
        with pytest.raises(StreamingError, match="got 4096 other bytes"):
            AccountBoard.open(tmp_path / "board")


def test_board_create_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StreamingError, match=r"cannot create the account board .*No such file or directory"):
        AccountBoard.create(tmp_path / "missing" / "board")


FULL_DISK = """
import sys
from pathlib import Path
from streaming.board import AccountBoard
from streaming.errors import StreamingError
try:
    AccountBoard.create(Path(sys.argv[1]) / "board", 4096)
except StreamingError as exc:
    print(exc, list(Path(sys.argv[1]).iterdir()))
"""


def test_board_create_names_a_full_disk_instead_of_dying_of_a_signal(tmp_path: Path) -> None:
    # The mount lives in a namespace of its own and ends with the process.
    in_small_disk = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64k none "$0" && exec "$@"', str(tmp_path)]
    if subprocess.run([*in_small_disk, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs `unshare -rm` (util-linux, user namespaces) to make a small disk")
    creating = [*in_small_disk, sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(creating, check=False, capture_output=True, text=True)
    assert re.match(r"no room for \d+ bytes in .*: free some space there.* \[\]", done.stdout), (
        done.stdout,
        done.stderr,
    )
