"""Weights on disk: safetensors, or torch files read with `weights_only`; nothing here ever unpickles objects."""

import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoders_core.errors import WeightsError, WeightsNotFoundError

Tensors = dict[str, Tensor]

SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")
WEIGHT_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""Names that hold weights in a directory or on the hub, best first."""

_WRAPPERS: Final = ("state_dict", "model_state_dict", "model")
_PREFIXES: Final = ("module.", "_orig_mod.")


def find_weights(directory: Path) -> Path:
    """The weights file of a model directory. Raises WeightsNotFoundError naming what was looked for."""
    for name in WEIGHT_FILES:
        if (directory / name).is_file():
            return directory / name
    single = [path for path in sorted(directory.iterdir()) if path.suffix in SUFFIXES]
    if len(single) == 1:
        return single[0]
    found = f"; {len(single)} weights files are there, name one of them" if single else ""
    raise WeightsNotFoundError(f"{directory}: expected one of {', '.join(WEIGHT_FILES)}{found}")


def read_tensors(path: Path) -> Tensors:
    """Every tensor of a weights file (or of a sharded index), by name, on CPU; known wrappers are taken off.

    Raises WeightsNotFoundError when the file is missing, WeightsError when it is damaged or not a state dict.
    """
    if not path.is_file():
        raise WeightsNotFoundError(f"{path}: no such weights file")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except pickle.UnpicklingError as exc:  # whose own words tell how to run the code in it
        raise WeightsError(
            f"{path}: the file is damaged or no weights file: it holds more than tensors, and pickled objects are never "
            "loaded; expected a state dict, best as .safetensors"
        ) from exc
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise WeightsError(f"{path}: the file is damaged or no weights file: {reason}") from exc
    return strip_wrappers(found, path)


def _read_torch(path: Path) -> Mapping[str, Any]:
    if _is_torchscript(path):
        raise WeightsError(
            f"{path}: this is a TorchScript archive, which holds code; expected a plain state dict: convert it with "
            "torch.save(torch.jit.load(file).state_dict(), new_file), or use the .safetensors release of the model"
        )
    loaded: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_shards(index: Path) -> Tensors:
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    tensors: Tensors = {}
    for name in names:
        if Path(name).name != name:
            raise WeightsError(f"{index}: expected file names beside the index, got {name!r}")
        tensors |= read_tensors(index.parent / name)
    if not tensors:
        raise WeightsError(f"{index}: the index names no weights")
    return tensors


def strip_wrappers(found: Any, source: Path) -> Tensors:
    """A plain dict of tensors: top-level `state_dict` / `model` opened, `module.` and `_orig_mod.` taken off names."""
    while isinstance(found, Mapping) and (inner := [key for key in _WRAPPERS if isinstance(found.get(key), Mapping)]):
        found = found[inner[0]]
    tensors = (
        {key: value for key, value in found.items() if isinstance(value, Tensor)} if isinstance(found, Mapping) else {}
    )
    if not tensors:
        raise WeightsError(f"{source}: expected a state dict of named tensors, got {type(found).__name__} without any")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def load_strictly(module: nn.Module, tensors: Tensors, *, source: str, family: str, dtype: torch.dtype) -> None:
    """Put `tensors` into `module` (which may be on the meta device); every name and every shape must agree.

    Raises WeightsError with the missing and unexpected keys, and the family that the file looked like.
    """
    wanted = module.state_dict()
    missing = tuple(sorted(wanted.keys() - tensors.keys()))
    unexpected = tuple(sorted(tensors.keys() - wanted.keys()))
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in tensors and tensors[key].shape != wanted[key].shape
    ]
    if missing or unexpected or shapes:
        parts = [("missing", list(missing)), ("unexpected", list(unexpected)), ("of another shape", shapes)]
        words = "; ".join(f"{what}: {_first_ten(names)}" for what, names in parts if names)
        raise WeightsError(
            f"{source}: looked like {family}, but does not fit {type(module).__name__}: {words}",
            missing=missing,
            unexpected=unexpected,
        )
    converted = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    module.load_state_dict(converted, strict=True, assign=True)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Save as safetensors, atomically: a reader sees the old file or the new one, and open mappings stay valid."""
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=path.suffix, delete=False) as file:
        temporary = Path(file.name)
    try:
        save_file(plain, temporary, metadata={"format": "pt"})
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an absent file is an empty one. Raises WeightsError when it is no object."""
    try:
        content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as exc:
        raise WeightsError(f"{path}: expected JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _first_ten(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
