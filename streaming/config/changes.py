"""What a reload changes: cameras come, go and change one by one; everything else takes a restart."""

from typing import NamedTuple

from streaming.config.models import Config


class CameraChanges(NamedTuple):
    """Ids of cameras, in the order of the files. A camera that is switched on or off counts as added or removed."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


def diff_cameras(old: Config, new: Config) -> CameraChanges:
    """Which cameras run differently under `new`, whatever part of the file it came from."""
    before, after = old.enabled_cameras(), new.enabled_cameras()
    return CameraChanges(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name in after if name in before and old.cameras[name] != new.cameras[name]),
    )


def restart_needed(old: Config, new: Config) -> list[str]:
    """The sections of `new` that a running daemon cannot take over.

    `encoder.budget_ms` is not among them: it reaches the cameras, and those are reloaded.
    """
    fixed = [name for name in Config.model_fields if name not in {"cameras", "defaults"}]
    budget = {"budget_ms": new.encoder.budget_ms}
    old = old.model_copy(update={"encoder": old.encoder.model_copy(update=budget)})
    return [name for name in fixed if getattr(old, name) != getattr(new, name)]
