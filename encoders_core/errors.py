"""The errors of the encoders: few classes, each also a subclass of the matching builtin, raised with data."""


class EncoderError(Exception):
    """Raised when anything in `encoders_core` fails for a reason that it can name."""


class OptionError(EncoderError, ValueError):
    """Raised when an option is unknown or its value does not fit: says which, what was expected and what came."""


class InputError(EncoderError, ValueError):
    """Raised when pictures, clips, texts or features have the wrong shape, type or range."""


class WeightsError(EncoderError, ValueError):
    """Raised when a weights file is damaged, foreign, or of another model: lists missing and unexpected keys."""

    def __init__(self, message: str, *, missing: tuple[str, ...] = (), unexpected: tuple[str, ...] = ()) -> None:
        self.missing, self.unexpected = missing, unexpected
        super().__init__(message)


class WeightsNotFoundError(EncoderError, FileNotFoundError):
    """Raised when weights are not where they were looked for: says where, and how to get them."""
