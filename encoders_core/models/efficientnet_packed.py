"""EfficientNet-Lite0 that infers through its folded network and is the plain one for everything else."""

from typing import Any, Final

import torch
from torch import Tensor, nn

from encoders_core.models.efficientnet_lite import EfficientNetLite, fold
from encoders_core.models.weights_watch import WeightsWatch

SIZE_HW: Final = (224, 224)
"""What the weights were trained for, and kernels are laid out for."""


def infers(model: nn.Module, x: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether nothing but numbers is wanted of a model in evaluation mode, for pictures of `shape` (C, H, W)."""
    plain = torch.is_grad_enabled() or model.training or torch.is_autocast_enabled("cpu") or not x.numel()
    return not plain and x.dtype == torch.float32 and x.device.type == "cpu" and tuple(x.shape[1:]) == shape


class PackedEfficientNetLite(EfficientNetLite):
    """The same features but for rounding, 1.9 times as fast: BatchNorm folded, kernels laid out for oneDNN (see `fold`).

    With gradients, in training, for other sizes or types it is the plain network, whose weights it keeps; the folded ones
    are a second copy, made anew when the weights change.
    """

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224) float32, normalised -> (B, 1280) float32; other sizes work as in the plain network."""
        if not infers(self, x, (3, *SIZE_HW)):
            return super().forward_features(x)
        watch = self.__dict__.get("_watch")
        if watch is None or not watch.unchanged():
            self.__dict__.update(_folded=fold(self, SIZE_HW), _watch=WeightsWatch(self))
        features: Tensor = self.__dict__["_folded"](x)
        return features.clone()  # which may enter training: the folded network infers

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_folded", "_watch")}


def pack_convolutions(module: nn.Module) -> int:
    """Let every EfficientNet-Lite0 inside infer through its folded network, in place; how many convolutions fold."""
    networks = [one for one in module.modules() if type(one) is EfficientNetLite]
    for one in networks:
        one.__class__ = PackedEfficientNetLite
    return sum(isinstance(layer, nn.Conv2d) for one in networks for layer in one.modules())
