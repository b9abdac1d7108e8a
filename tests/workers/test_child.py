"""A worker process that cannot start says why, in one sentence, to its log and to the supervisor."""

import json
import subprocess
import sys
from pathlib import Path

from streaming.config import Config
from workers.control import Assignment, decode_status, encode_command


def test_a_model_that_cannot_be_had_is_told_in_a_sentence(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"model": {"name": "no-such-model"}, "cameras": {"a": "rtsp://user:secret@10.0.0.5/"}}
    )
    assignment = Assignment(
        role="encode",
        worker="encode-0",
        config=config.to_json(),
        session="s",
        cameras=("a",),
        encoders={},
        listen=f"ipc://{tmp_path}/encode",
        publisher=f"ipc://{tmp_path}/publish",
        board=str(tmp_path / "board"),
    )

    worker = subprocess.run(
        [sys.executable, "-m", "workers.child"],
        input=encode_command(assignment),
        capture_output=True,
        timeout=50,
        check=False,
    )

    status = decode_status(worker.stdout.splitlines()[-1])
    assert worker.returncode == 1
    assert status is not None
    assert status.kind == "failed"
    assert status.detail.startswith("model: unknown frame encoder 'no-such-model': did you mean 'efficientnet-lite0'?")
    said = json.loads(worker.stderr.splitlines()[-1])
    assert (said["event"], said["reason"]) == ("worker failed", status.detail)
    assert b"Traceback" not in worker.stderr
    assert b"secret" not in worker.stderr + worker.stdout
