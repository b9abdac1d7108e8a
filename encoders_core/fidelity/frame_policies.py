"""Policies that see a whole frame at a time: encode it, hold it, or encode a smaller one. They serve any frame encoder."""

import numpy as np
from numpy.typing import NDArray

from encoders_core.config import GateConfig
from encoders_core.draining import drain
from encoders_core.errors import OptionError
from encoders_core.fidelity.policy import LINEAR, Frame, Step
from encoders_core.fidelity.subject import DenseVitEncoder, Subject
from encoders_core.realtime.frame_encoder import FrameEncoder, ScalableFrameEncoder
from encoders_core.realtime.frame_gate import FrameGate
from encoders_core.realtime.intake import shrink_frame


class Plain:
    """The plain encoder on every frame: what all others are measured against."""

    name = "plain"

    def __init__(self, encoder: FrameEncoder) -> None:
        self._encoder = encoder
        self._state = encoder.new_state()

    def reset(self) -> None:
        """Forget the camera."""
        self._state = self._encoder.new_state()

    def encode(self, frame: Frame) -> NDArray[np.float32]:
        """(H, W, 3) uint8 -> (D,) float32."""
        features: NDArray[np.float32] = drain(self._encoder.encode([self._encoder.plan(self._state, frame)]))[0]
        return features

    def step(self, frame: Frame, at_ns: int) -> Step:  # noqa: ARG002  a full pass knows no time
        """A full pass."""
        return encoded(self._encoder, self.encode(frame))


def encoded(encoder: FrameEncoder, features: NDArray[np.float32], *, share: float = 1.0) -> Step:
    """The step of a pass that cost `share` of the plain one."""
    rows, macs = plain_cost(encoder)
    return Step(features, round(rows * share), rows, macs * share, macs, encoded=True, full=share == 1.0)


def held(encoder: FrameEncoder, features: NDArray[np.float32]) -> Step:
    """The step of a frame for which the last vector stands."""
    rows, macs = plain_cost(encoder)
    return Step(features, 0, rows, 0.0, macs, encoded=False, full=False)


def plain_cost(encoder: FrameEncoder) -> tuple[int, float]:
    """Rows and multiply-adds of a full pass; of a network that nobody counts, 1 and 1: shares are right all the same."""
    if isinstance(encoder, DenseVitEncoder):
        return int(encoder.cost.plain_rows[:, list(LINEAR)].sum()), encoder.cost.plain_macs
    return 1, 1.0


class Hold:
    """Encode every n-th frame, whatever it shows, and hold its vector."""

    def __init__(self, encoder: FrameEncoder, every: int) -> None:
        self.name = f"hold{every}"
        self._plain, self._encoder, self._every = Plain(encoder), encoder, every
        self.reset()

    def reset(self) -> None:
        """Forget the camera."""
        self._plain.reset()
        self._seen, self._features = 0, np.zeros(0, np.float32)

    def step(self, frame: Frame, at_ns: int) -> Step:  # noqa: ARG002  it counts frames
        """Encode when it is this frame's turn."""
        due, self._seen = self._seen % self._every == 0, self._seen + 1
        if not due:
            return held(self._encoder, self._features)
        self._features = self._plain.encode(frame)
        return encoded(self._encoder, self._features)


class GatedFrames:
    """The shipped frame gate in front of the plain encoder."""

    name = "frame_gate"

    def __init__(self, encoder: FrameEncoder, target_fvu: float) -> None:
        self._plain, self._encoder = Plain(encoder), encoder
        self._config = GateConfig(target_fvu=target_fvu)
        self.reset()

    def reset(self) -> None:
        """Forget the camera."""
        self._plain.reset()
        self._gate = FrameGate(self._config, self._encoder.calibration)
        self._features = np.zeros(0, np.float32)

    def step(self, frame: Frame, at_ns: int) -> Step:
        """Encode when the gate says so."""
        decision = self._gate.decide(frame, at_ns)
        if not decision.encode:
            return held(self._encoder, self._features)
        self._gate.begin(frame, at_ns, decision)
        self._features = self._plain.encode(frame)
        self._gate.learn(self._features)
        return encoded(self._encoder, self._features)


class LowResolution:
    """A full pass of a smaller picture. Its vectors lie elsewhere: a rung under overload, no saving at equal fidelity."""

    name = "lowres"

    def __init__(self, subject: Subject, size_px: int) -> None:
        self._full, self._size = subject.encoder, size_px
        if subject.vit is not None:
            self._small: FrameEncoder = subject.vit.at_size(size_px)
        elif isinstance(subject.encoder, ScalableFrameEncoder) and size_px in subject.encoder.sizes_px:
            self._small = subject.encoder
            subject.encoder.prepare([size_px])
        else:
            raise OptionError(f"{subject.name} takes no pictures of {size_px} pixels")
        self._plain = Plain(self._small)

    def reset(self) -> None:
        """Forget the camera."""
        self._plain.reset()

    def step(self, frame: Frame, at_ns: int) -> Step:  # noqa: ARG002  a full pass knows no time
        """A full pass of the picture made smaller."""
        features = self._plain.encode(shrink_frame(frame, self._size))
        full_rows, full_macs = plain_cost(self._full)
        if isinstance(self._small, DenseVitEncoder):
            rows, macs = plain_cost(self._small)
            return Step(features, rows, full_rows, macs, full_macs, encoded=True, full=False)
        return encoded(self._full, features, share=(self._size / self._full.descriptor.input.size_hw[0]) ** 2)


def sizes(subject: Subject) -> list[int]:
    """The smaller square sizes that the model can take, largest first: about 5/7 and 1/2 of its own for a ViT."""
    own = subject.spec.size_hw[0]
    if subject.vit is None:
        known = subject.encoder.sizes_px if isinstance(subject.encoder, ScalableFrameEncoder) else ()
        return [size for size in known if size < own]
    patch = subject.vit.network.config.patch_size
    return [round(own * share / patch) * patch for share in (6 / 7, 5 / 7, 4 / 7, 1 / 2)]
