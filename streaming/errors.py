"""The errors of the streaming half: few classes, each also a subclass of the matching builtin, raised with data."""

from typing import Literal

Reason = Literal[
    "auth",
    "not_found",
    "refused",
    "timeout",
    "tls",
    "codec",
    "stalled",
    "ended",
    "unreachable",
    "no_device",
    "internal",
]
"""Why a source is not delivering. Stable words: they are published on MQTT and users match on them."""


class StreamingError(Exception):
    """Raised when anything in `streaming` fails for a reason that it can name."""


class ConfigError(StreamingError, ValueError):
    """Raised when a configuration cannot be used: says where, what was expected and what came."""

    def __init__(self, message: str, *, path: str = "", line: int | None = None) -> None:
        self.path, self.line = path, line
        where = f"{path}:{line}: " if line is not None else f"{path}: " if path else ""
        super().__init__(where + message)


class SourceError(StreamingError, OSError):
    """Raised when a source cannot be opened or stops delivering. `reason` is one of `Reason`; the text holds no secret."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason: Reason = reason
        super().__init__(message)


class WireError(StreamingError, ValueError):
    """Raised when bytes are not a message of ours: truncated, oversized, of another schema, or hostile."""


class TransportError(StreamingError, ConnectionError):
    """Raised when a ZeroMQ end cannot be bound or connected."""


class BrokerError(StreamingError, ConnectionError):
    """Raised when the MQTT broker cannot be used. `reason` is a stable word such as `refused`, `auth`, `timeout`, `tls`."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class ModelMismatchError(StreamingError, ValueError):
    """Raised when vectors of two models would be mixed. `expected` and `got` are fingerprints."""

    def __init__(self, expected: str, got: str, camera: str) -> None:
        self.expected, self.got, self.camera = expected, got, camera
        super().__init__(
            f"camera {camera!r} now sends vectors of model {got}, expected {expected}: "
            "vectors of two models cannot be compared; subscribe again, or pass allow_model_change=True"
        )
