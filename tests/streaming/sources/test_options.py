from pathlib import Path

import av
import pytest

from streaming.errors import SourceError
from streaming.sources import SourceConfig
from streaming.sources.options import SMALL_PROBE, comes_back, request_for


def options(url: str, **settings: object) -> dict[str, str]:
    return request_for(SourceConfig(url, **settings)).options  # type: ignore[arg-type]


def test_rtsp_is_tcp_by_default_with_a_time_out_in_microseconds() -> None:  # R3, R11
    request = request_for(SourceConfig("rtsp://camera/x"))
    assert request.options["rtsp_transport"] == "tcp"
    assert request.options["timeout"] == "5000000"
    assert request.options["reorder_queue_size"] == "2"
    assert request.probes == (SMALL_PROBE, {})


def test_rtsp_udp_by_choice() -> None:
    assert options("rtsp://camera/x", transport="udp")["rtsp_transport"] == "udp"


@pytest.mark.parametrize("url", ["rtsps://camera/x", "https://camera/x"])
def test_tls_is_verified_by_default(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(av.library_versions, "libavformat", (62, 3, 100))
    bundle = tmp_path / "system.pem"
    bundle.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert options(url)["tls_verify"] == "1"
    assert options(url)["ca_file"] == str(bundle)
    own = tmp_path / "own.pem"
    own.touch()
    assert options(url, tls_ca=str(own))["ca_file"] == str(own)
    with pytest.raises(SourceError, match="no such file"):
        options(url, tls_ca="/no/such.pem")
    assert options(url, tls_verify=False)["tls_verify"] == "0"
    assert "tls_verify" not in options(url.replace("s://", "://"))


def test_rtsps_is_refused_where_ffmpeg_would_ignore_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(av.library_versions, "libavformat", (61, 7, 100))
    with pytest.raises(SourceError, match="av>=16") as raised:
        options("rtsps://camera/x")
    assert raised.value.reason == "tls"
    assert options("rtsps://camera/x", tls_verify=False)["tls_verify"] == "0"
    assert options("https://camera/x")["tls_verify"] == "1"


def test_own_options_win() -> None:
    assert options("rtsp://camera/x", options={"timeout": "7", "buffer_size": "9"})["timeout"] == "7"


@pytest.mark.parametrize("url", ["webcam:2", "/dev/video2", "2"])
def test_webcam_by_index_or_path(url: str) -> None:
    request = request_for(SourceConfig(url, options={"video_size": "640x480"}))
    assert (request.target, request.format) == ("/dev/video2", "v4l2")
    assert request.options == {"ts": "abs", "video_size": "640x480"}


def test_file_url_and_pattern(tmp_path: Path) -> None:
    clip = tmp_path / "a b.mp4"
    clip.touch()
    assert request_for(SourceConfig(f"file://{tmp_path}/a%20b.mp4")).target == f"file:{clip}"
    assert request_for(SourceConfig(str(clip))).target == f"file:{clip}"
    pattern = request_for(SourceConfig("lavfi:testsrc2=size=64x64:rate=5"))
    assert (pattern.target, pattern.format) == ("testsrc2=size=64x64:rate=5", "lavfi")


@pytest.mark.parametrize(
    ("url", "reason", "says"),
    [
        ("rtps://u:hunter2@camera/x", "not_found", "expected rtsp://"),
        ("/no/such/file.mp4", "not_found", "no such file"),
        ("webcam:front", "no_device", "webcam:0"),
    ],
)
def test_bad_url_gets_one_sentence(url: str, reason: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as raised:
        request_for(SourceConfig(url))
    assert raised.value.reason == reason
    assert "hunter2" not in str(raised.value)


def test_cameras_come_back_and_files_do_not() -> None:
    assert all(map(comes_back, ["rtsp://c/x", "https://c/x", "webcam:0", "/dev/video0", "0", "scene:street"]))
    assert not any(map(comes_back, ["/clip.mp4", "file:///clip.mp4", "lavfi:testsrc2", "rtps://c/x"]))
