"""The topic tree: `<root>/<node>/...` <-> typed addresses. Pure; every topic of the project is built and read here."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal

from streaming.errors import ConfigError

ID: Final = re.compile(r"[a-z0-9_-]{1,64}")
"""What root, node, camera, model and event ids look like: one topic level, safe in every broker's ACL file."""
MAX_ID: Final = 64

Kind = Literal["availability", "info", "model", "stats", "gap", "state", "embedding", "event", "set", "value"]


def check_id(what: str, value: str) -> str:
    """The id itself. Raises ConfigError, with a usable spelling, unless it is 1-64 of `a-z 0-9 _ -`."""
    if ID.fullmatch(value):
        return value
    hint = f", for example {slug(value)!r}" if value else ""
    raise ConfigError(f"expected {what} of 1 to 64 characters a-z, 0-9, _ or -{hint}, got {value[:80]!r}")


def slug(name: str) -> str:
    """Any text -> an id: lower case, accents dropped, everything else one `-`. "google/ViT-B 16" -> "google-vit-b-16"."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-")[:MAX_ID].rstrip("-") or "unnamed"


@dataclass(frozen=True, slots=True)
class Address:
    """What a topic says: whose (`node`, `camera`), which `kind`, and its last level (`name`: model, event, setting)."""

    node: str
    kind: Kind
    camera: str | None = None
    name: str | None = None


class Topics:
    """The topics of one node below one root. `node` may be `+` to build filters for all nodes."""

    def __init__(self, root: str, node: str) -> None:
        self.root = check_id("a topic root", root)
        self.node = node if node == "+" else check_id("a node id", node)
        self._base = f"{root}/{node}"

    @property
    def availability(self) -> str:
        """Retained `online` / `offline` / `stopped`; also the last will."""
        return f"{self._base}/availability"

    @property
    def info(self) -> str:
        """Retained JSON: schema, version, session, cameras, models."""
        return f"{self._base}/info"

    @property
    def stats(self) -> str:
        """JSON figures of the node, every few seconds."""
        return f"{self._base}/stats"

    @property
    def gap(self) -> str:
        """JSON: what was not delivered while the broker was away."""
        return f"{self._base}/event/gap"

    def model(self, model_id: str) -> str:
        """Retained JSON descriptor of a model."""
        return f"{self._base}/model/{model_id}"

    def state(self, camera: str) -> str:
        """Retained JSON state of a camera."""
        return self._of_camera(camera, "state")

    def embedding(self, camera: str, model_id: str) -> str:
        """Vectors of a camera by a model."""
        return self._of_camera(camera, f"embedding/{model_id}")

    def event(self, camera: str, event_type: str) -> str:
        """JSON events of a camera."""
        return self._of_camera(camera, f"event/{event_type}")

    def command(self, camera: str, name: str) -> str:
        """Where a setting of a camera is asked for; the only topics that a publisher subscribes to."""
        return self._of_camera(camera, f"set/{name}")

    def value(self, camera: str, name: str) -> str:
        """Retained effective value of a setting of a camera."""
        return self._of_camera(camera, f"value/{name}")

    @property
    def commands(self) -> str:
        """Filter for all commands to this node: `<root>/<node>/cam/+/set/#`."""
        return self._of_camera("+", "set/#")

    def _of_camera(self, camera: str, rest: str) -> str:
        return f"{self._base}/cam/{camera}/{rest}"


def parse(root: str, topic: str) -> Address | None:
    """The address that a topic below `root` names, or None: another tree, another shape, or an id that is none."""
    levels = topic.split("/")
    address: Address | None = None
    match levels[1:]:
        case [node, ("availability" | "info" | "stats") as kind]:
            address = Address(node, kind)
        case [node, "event", "gap"]:
            address = Address(node, "gap")
        case [node, "model", name]:
            address = Address(node, "model", name=name)
        case [node, "cam", camera, "state"]:
            address = Address(node, "state", camera)
        case [node, "cam", camera, ("embedding" | "event" | "set" | "value") as kind, name]:
            address = Address(node, kind, camera, name)
    return address if levels[0] == root and all(ID.fullmatch(level) for level in levels) else None


def build(root: str, address: Address) -> str:
    """The topic of an address; the inverse of `parse`."""
    topics = Topics(root, address.node)
    camera, name = address.camera or "", address.name or ""
    match address.kind:
        case "availability" | "info" | "stats" | "gap":
            topic: str = getattr(topics, address.kind)
        case "model":
            topic = topics.model(name)
        case "state":
            topic = topics.state(camera)
        case "embedding":
            topic = topics.embedding(camera, name)
        case "event":
            topic = topics.event(camera, name)
        case "set":
            topic = topics.command(camera, name)
        case "value":
            topic = topics.value(camera, name)
    return topic


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic that the filter `narrow` matches is matched by the filter `wide` as well."""
    wide_levels, narrow_levels = wide.split("/"), narrow.split("/")
    for at, level in enumerate(wide_levels):
        if level == "#":
            return True
        if at >= len(narrow_levels) or narrow_levels[at] == "#":
            return False
        if level not in {"+", narrow_levels[at]}:
            return False
    return len(wide_levels) == len(narrow_levels)


def fewest(filters: set[str]) -> set[str]:
    """The filters without those that another one covers: a broker may deliver once for each that matches."""
    return {one for one in filters if not any(other != one and covers(other, one) for other in filters)}
