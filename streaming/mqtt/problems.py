"""What is wrong now, one sentence each: logged when it appears, listed until it is over."""

import logging

log = logging.getLogger("camvec.mqtt")


class Problems:
    """Sentences by what they are about."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def add(self, about: str, said: str) -> None:
        """It is wrong; the log hears of it when it is new."""
        if self._said.get(about) != said:
            self._said[about] = said
            log.warning("%s", said)

    def over(self, about: str) -> None:
        """It is not wrong any more."""
        self._said.pop(about, None)

    def __bool__(self) -> bool:
        return bool(self._said)

    def sentences(self) -> list[str]:
        """All of them, oldest first."""
        return list(self._said.values())
