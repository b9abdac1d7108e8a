"""Cameras, files and patterns behind one interface: `open_source(config)` gives the `Source` of a URL."""

from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.logs import get_logger
from streaming.sources.base import Picture, Source, SourceConfig, StreamInfo

__all__ = ["Picture", "Source", "SourceConfig", "StreamInfo", "open_source"]

_log = get_logger("capture")


def open_source(config: SourceConfig, clock: Clock = SYSTEM_CLOCK) -> Source:
    """The source behind `config.url`, not opened yet. FFmpeg and the test scene are imported only when asked for."""
    if config.url.startswith("scene:"):
        from streaming.sources.scene import SceneSource  # noqa: PLC0415 - starts a renderer; not every user wants one

        if config.decode_gate is not None:
            _log.info("decode gate stands aside", source=config.url, why="the test scene is not a camera's stream")
        return SceneSource(config, clock)
    from streaming.sources.av_source import AvSource  # noqa: PLC0415 - see above

    source = AvSource(config, clock)
    if not config.strip:
        return source
    from streaming.sources.strip import StripSource  # noqa: PLC0415 - for measurements only

    return StripSource(source)
