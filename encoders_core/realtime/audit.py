"""Frames drawn at random, before anything is decided about them, run through a full pass in slack time: the truth.

The draw knows nothing of a frame, so what is measured holds for all frames for which a vector stood. What could not be kept
until there was time is counted: coverage says how much of the draw was seen.
"""

import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from encoders_core.config import AuditConfig
from encoders_core.realtime.fidelity import Fidelity, Meter, Steering
from encoders_core.realtime.frame_encoder import FrameEncoder, dense_steps
from encoders_core.realtime.session import Session

_MB: Final = 1_000_000


@dataclass(slots=True, eq=False)
class Ticket:
    """A drawn frame; `features` is what stood for it, once that is known."""

    camera: str
    pixels: NDArray[np.uint8]
    features: NDArray[np.float32] | None = None


@dataclass(slots=True)
class _Camera:
    draws: random.Random
    meter: Meter
    session: Session | None = None
    lost: int = 0
    """Drawn, with a vector, and not audited."""


@dataclass(slots=True)
class Auditor:
    """The draw, the store and the full passes of all cameras of one encoder."""

    config: AuditConfig
    encoder: FrameEncoder
    target_fvu: float
    _cameras: dict[str, _Camera] = field(default_factory=dict)
    _waiting: deque[Ticket] = field(default_factory=deque)
    _open: int = 0
    _bytes: int = 0
    _ticket: Ticket | None = None
    _steps: Generator[None, None, NDArray[np.float32]] | None = None

    def draw(self, camera: str, pixels: NDArray[np.uint8]) -> Ticket | None:
        """A frame that came, before anything is known of it: a ticket if it is to be audited and there is room for it."""
        state = self._camera(camera)
        if state.draws.random() >= self.config.share:
            return None
        if self._open >= self.config.max_frames or self._bytes + pixels.nbytes > self.config.max_mb * _MB:
            state.lost += 1
            return None
        self._open += 1
        self._bytes += pixels.nbytes
        return Ticket(camera, pixels)

    def stood(self, ticket: Ticket | None, features: NDArray[np.float32]) -> None:
        """(D,) float32, not normalised: the vector that stood for the frame."""
        if ticket is None:
            return
        if ticket.camera in self._cameras:
            ticket.features = features
            self._waiting.append(ticket)
        else:
            self._release(ticket)

    def void(self, ticket: Ticket | None) -> None:
        """No vector stood for the frame: there is nothing to compare."""
        if ticket is not None:
            self._release(ticket)

    @property
    def idle(self) -> bool:
        """Whether no frame waits for its full pass."""
        return self._steps is None and not self._waiting

    def step(self) -> bool:
        """One block of a full pass. False when no frame waits."""
        if self._steps is None:
            if not self._waiting:
                return False
            self._ticket = self._waiting.popleft()
            self._steps = dense_steps(self.encoder, self._ticket.pixels)
        try:
            next(self._steps)
        except StopIteration as done:
            self._close(done.value[0])
        except Exception:  # noqa: BLE001  whatever a model raises: the frame itself is booked where it was encoded
            self._close(None)
        return True

    def forget(self, camera: str) -> None:
        """All that is known of `camera`."""
        self._cameras.pop(camera, None)
        for ticket in [ticket for ticket in self._waiting if ticket.camera == camera]:
            self._waiting.remove(ticket)
            self._release(ticket)

    def fidelity(self, camera: str) -> Fidelity:
        """What the audits of `camera` say."""
        state = self._camera(camera)
        known = state.meter.audited + state.lost
        return state.meter.fidelity(state.meter.audited / known if known else 1.0)

    def steer(self, camera: str, session: Session) -> None:
        """Set the thresholds of `session`, the memory of `camera`, now and whenever an audit gives reason to."""
        state = self._camera(camera)
        state.session = session
        self._apply(state)

    @staticmethod
    def _apply(state: _Camera) -> None:
        steering = state.meter.steering
        if state.session is not None:
            state.session.steer(steering.scale, exact=steering.off)

    def _camera(self, camera: str) -> _Camera:
        if camera not in self._cameras:
            draws = random.Random(f"{self.config.seed}/{camera}")  # noqa: S311  a sample, not a secret
            meter = Meter(self.encoder.calibration.variance, Steering(self.target_fvu))
            self._cameras[camera] = _Camera(draws, meter)
        return self._cameras[camera]

    def _release(self, ticket: Ticket) -> None:
        self._open -= 1
        self._bytes -= ticket.pixels.nbytes

    def _close(self, truth: NDArray[np.float32] | None) -> None:
        ticket, self._ticket, self._steps = self._ticket, None, None
        if ticket is None or ticket.features is None:
            raise AssertionError("an audit without a frame")
        self._release(ticket)
        state = self._cameras.get(ticket.camera)
        if state is None:
            return
        if truth is None or not (np.isfinite(truth).all() and np.isfinite(ticket.features).all()):
            state.lost += 1
        else:
            state.meter.add(truth, ticket.features)
            self._apply(state)
