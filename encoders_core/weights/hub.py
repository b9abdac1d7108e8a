"""From what a user names (directory, file, hub id) to files on this disk; the hub is asked only for hub ids."""

import functools
import importlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from encoders_core.errors import WeightsError, WeightsNotFoundError
from encoders_core.weights.files import SUFFIXES, WEIGHT_FILES, read_json

logger = logging.getLogger(__name__)

CONFIG_FILES: Final = ("config.json", "preprocessor_config.json", "open_clip_config.json")
"""What a vision model needs beside its weights, as far as the repository has it."""

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
Download = Callable[..., str]


def locate(
    source: str | os.PathLike[str],
    *,
    files: Sequence[str] = CONFIG_FILES,
    revision: str | None = None,
    local_files_only: bool = False,
    show_progress_bar: bool = True,
    endpoint: str | None = None,
) -> Path:
    """A directory or file for `source`: a path that exists, or the cached copy of the hub repository `owner/name`.

    A name that looks like a path is never taken for a hub id. With `local_files_only`, `HF_HUB_OFFLINE=1`, or the hub
    out of reach, only what the cache holds is used. Raises WeightsNotFoundError that says where it looked.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    name = os.fspath(source)
    if not isinstance(source, str) or not _HUB_ID.fullmatch(name) or path.suffix in SUFFIXES:
        raise WeightsNotFoundError(
            f"no directory or file {name!r}; expected a model directory, a weights file ({', '.join(SUFFIXES)}), or a "
            "hub id of the form owner/name"
        )
    fetch = _fetcher(name, revision, endpoint, local_files_only=local_files_only, show_progress_bar=show_progress_bar)
    return fetch_repository(fetch, name, files)


def fetch_repository(fetch: Callable[[str], Path | None], name: str, files: Sequence[str]) -> Path:
    """Get configuration and weights of a repository, file by file; the directory that they share.

    `fetch` gives the local path of a file, or None when the repository (or the cache) has none of that name.
    """
    for file in files:
        fetch(file)
    for file in WEIGHT_FILES:
        if (found := fetch(file)) is None:
            continue
        if file.endswith(".index.json"):
            for shard in sorted(set(read_json(found).get("weight_map", {}).values())):
                fetch(shard)
        return found.parent
    raise WeightsNotFoundError(
        f"{name}: found none of {', '.join(WEIGHT_FILES)} on the hub or in its cache. If this machine cannot reach the "
        "hub, download the repository elsewhere and give its directory instead of the id"
    )


def _fetcher(
    name: str, revision: str | None, endpoint: str | None, *, local_files_only: bool, show_progress_bar: bool
) -> Callable[[str], Path | None]:
    """A function that downloads one file of `name`, or finds it in the cache; after one failure only the cache."""
    try:
        import huggingface_hub as hub  # noqa: PLC0415  optional: only hub ids need it
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as exc:
        raise WeightsNotFoundError(
            f"{name!r} is no directory here, and hub ids need huggingface_hub: pip install 'camvec[hub]'"
        ) from exc
    state = {"offline": local_files_only}

    def fetch(file: str) -> Path | None:
        options: dict[str, Any] = {"revision": revision, "endpoint": endpoint, "local_files_only": state["offline"]}
        if not show_progress_bar:
            options["tqdm_class"] = _silent_bar()
        try:
            return Path(hub.hf_hub_download(name, file, **options))
        except errors.LocalEntryNotFoundError:
            if not state["offline"]:
                logger.warning("the hub is out of reach; using what its cache holds of %s", name)
            state["offline"] = True
            return None
        except errors.EntryNotFoundError:
            return None
        except (errors.HfHubHTTPError, errors.HFValidationError) as exc:
            reason = str(exc).strip().splitlines()[0]
            raise WeightsNotFoundError(f"the hub gave no {file} of {name}: {reason}") from exc
        except OSError as exc:
            raise WeightsError(f"downloading {file} of {name} failed: {exc}") from exc

    return fetch


def _silent_bar() -> type[Any]:
    """A progress bar that is not drawn."""
    bar: Any = importlib.import_module("tqdm").tqdm  # comes with huggingface_hub
    return type("SilentBar", (bar,), {"__init__": functools.partialmethod(bar.__init__, disable=True)})
