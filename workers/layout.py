"""Which worker serves which camera: a pure function of the configuration, sticky over reloads."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layout:
    """Camera ids by capture worker, and the index of the encoder that each camera belongs to."""

    capture: dict[str, tuple[str, ...]] = field(default_factory=dict)
    encoder_of: dict[str, int] = field(default_factory=dict)
    encoders: int = 1


def plan_layout(cameras: list[str], *, encoders: int, cameras_per_worker: int, before: Layout | None = None) -> Layout:
    """Spread `cameras` over workers; whoever has a place in `before` keeps it, because caches and reads live there."""
    before = before or Layout(encoders=encoders)
    wanted = set(cameras)
    capture = {name: [c for c in held if c in wanted] for name, held in before.capture.items()}
    encoder_of = {camera: index for camera, index in before.encoder_of.items() if camera in wanted}
    placed = {camera for held in capture.values() for camera in held}
    for camera in cameras:
        if camera not in placed:
            _least_loaded_worker(capture, cameras_per_worker).append(camera)
        if camera not in encoder_of:
            encoder_of[camera] = min(range(encoders), key=lambda i: (list(encoder_of.values()).count(i), i))
    return Layout({name: tuple(held) for name, held in capture.items() if held}, encoder_of, encoders)


def _least_loaded_worker(capture: dict[str, list[str]], limit: int) -> list[str]:
    free = [held for held in capture.values() if len(held) < limit]
    if free:
        return min(free, key=len)
    number = next(i for i in range(len(capture) + 1) if f"capture-{i}" not in capture)
    return capture.setdefault(f"capture-{number}", [])
