"""FFmpeg's log lines, each with the call that caused it: the only place that says which packets a camera lost.

PyAV's log level and its last error are global to the process, but `av.logging.Capture` is per thread, and FFmpeg logs in the
thread that called it as long as decoders start no threads of their own. So every call into FFmpeg is wrapped in a capture
of its own. PyAV drops a line that equals the one before it, even if that came from another camera: this is switched off.
The text that PyAV attaches to an exception may be another camera's line and is not used.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import av.logging

LogLine = tuple[int, str, str]
"""FFmpeg's level (16 error, 24 warning), the name of the component, and the text."""


@contextmanager
def captured_log() -> Iterator[list[LogLine]]:
    """A list that fills with what FFmpeg says in this thread during the block: warnings and worse."""
    if av.logging.get_level() != av.logging.WARNING or av.logging.get_skip_repeated():
        av.logging.set_skip_repeated(False)
        av.logging.set_level(av.logging.WARNING)
    with av.logging.Capture() as lines:
        yield lines
