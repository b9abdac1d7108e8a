import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streaming.redaction import MASK, Redactor, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://admin:hunter2@10.0.0.5/stream2", "rtsp://admin:***@10.0.0.5/stream2"),
        ("open 'rtsps://a:p%40ss%2Fw@cam:322/x': 401", "open 'rtsps://a:***@cam:322/x': 401"),
        ("mqtts://edge:se:cr@et@broker.local", "mqtts://edge:***@broker.local"),
        ("rtsp://admin:p/ss?w@10.0.0.5/x", "rtsp://admin:***@10.0.0.5/x"),
        ("rtsp://:onlypassword@h/x", "rtsp://:***@h/x"),
        ("login admin:hunter2@10.0.0.5:554 failed", "login admin:***@10.0.0.5:554 failed"),
        ("http://cam/v.cgi?user=u&password=hunter2&x=1", "http://cam/v.cgi?user=u&password=***&x=1"),
        ("http://cam/v?access_token=abc.def&n=2", "http://cam/v?access_token=***&n=2"),
        ("http://cam/v?key=k1", "http://cam/v?key=***"),
        ("rtsp://h:554/user=admin_password=tlJwpbo6_channel=1", "rtsp://h:554/user=admin_password=***"),
        ("x?next=rtsp%3A%2F%2Fu%3Ahunter2%40h%2Fs", "x?next=rtsp%3A%2F%2Fu%3A***%40h%2Fs"),
        ("Authorization: Basic YWRtaW46aHVudGVyMg==", "Authorization: Basic ***"),
    ],
)
def test_redact_passwords_by_form(text: str, expected: str) -> None:  # R20
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://10.0.0.5:554/stream2",
        "rtsp://viewer@10.0.0.5/stream2",
        "frame 12:30:01 at 25 fps",
        "camera front: no keyframe for 10 s; mail ops@example.org",
        "http://host:80/monkey=1",
    ],
)
def test_redact_leaves_harmless_text_alone(text: str) -> None:
    assert redact(text) == text


SECRETS = st.text(st.characters(exclude_categories=("Cs",)), min_size=3, max_size=24).filter(
    lambda secret: bool(secret.strip(MASK))
)
ENCODERS = st.sampled_from(
    [str, quote, lambda s: quote(s, safe=""), lambda s: quote(s, safe="").lower(), quote_plus, json.dumps, repr]
)


@given(st.lists(SECRETS, min_size=1, max_size=3), st.text(max_size=20), st.text(max_size=20), ENCODERS)
@example(["a**", "**b"], "a**", "*b", str)
@example(["b*c"], "", "", lambda s: "b" + s + "*c")
def test_redactor_no_registered_secret_survives(secrets: list[str], before: str, after: str, encode: object) -> None:
    redactor = Redactor(secrets)  # R20
    text = before + "".join(encode(secret) + after for secret in secrets)  # type: ignore[operator]
    masked = redactor.redact(text)
    for secret in secrets:
        assert secret not in masked
        assert quote(secret, safe="") not in masked
        assert json.dumps(secret)[1:-1] not in masked


def test_redactor_url_password_is_known_decoded() -> None:
    redactor = Redactor()
    assert redactor.add_url("rtsp://u:p%40ss@h/x")
    assert redactor.redact("the password p@ss, p%40ss") == "the password ***, ***"
    assert not redactor.add_url("rtsp://h/x")


def test_redactor_too_short_secret_is_refused() -> None:
    assert not Redactor().add("1")
