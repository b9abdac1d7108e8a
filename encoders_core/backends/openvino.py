"""A network's inference through OpenVINO, where it is installed; everything else about the encoder stays torch."""

import importlib.metadata
import importlib.util
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor, nn

from encoders_core.backends.openvino_graph import Run, compiled
from encoders_core.models.efficientnet_lite import EfficientNetLite
from encoders_core.models.efficientnet_packed import SIZE_HW, infers
from encoders_core.models.vit import VisionTransformer
from encoders_core.models.weights_watch import WeightsWatch

if TYPE_CHECKING:
    from encoders_core.encoder import Encoder

_OLDEST: Final = 2025


class OpenVinoTransformer(VisionTransformer):
    """(B, C, H, W) float32 at the model's own size -> (B, output_dim), any B, computed by OpenVINO.

    With gradients, in training, under autocast, for other sizes or for tokens it is torch's forward. When weights change
    or the model is reconfigured the network is compiled again. There are two, each with its copy of the weights, made when
    they are first wanted: for one picture, which is a little faster so, and for any number. See `compiled` for precision
    and threads.
    """

    int8: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, output_dim)."""
        if not infers(self, x, (self.config.in_chans, *self.config.img_size)):
            return super().forward(x)
        return _networks(self, self.config, int8=self.int8)(x)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_networks"}


class OpenVinoInt8Transformer(OpenVinoTransformer):
    """The same with linear layers in int8."""

    int8 = True


class OpenVinoEfficientNetLite(EfficientNetLite):
    """EfficientNet-Lite0 whose features at 224 px are computed by OpenVINO, in the manner of `OpenVinoTransformer`."""

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float32, normalised -> (B, 1280) float32."""
        if not infers(self, x, (3, *SIZE_HW)):
            return super().forward_features(x)
        return _networks(self)(x)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_networks"}


def openvino_obstacle(encoder: "Encoder") -> str | None:
    """Why OpenVINO cannot run this encoder; None where it can."""
    network = _network_of(encoder)
    if network is None or (isinstance(network, VisionTransformer) and network.config.pool == "none"):
        return "only an encoder of pictures with one vector a picture runs through OpenVINO"
    if encoder.device.type != "cpu" or encoder.dtype != torch.float32:
        return "OpenVINO is for float32 encoders on the CPU"
    return package_obstacle()


def package_obstacle() -> str | None:
    """What is wrong with the installed package; None if nothing is."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'camvec[openvino]' (or: pip install openvino)"
    found = importlib.metadata.version("openvino")
    if int(found.split(".")[0]) < _OLDEST:
        return f"expected openvino {_OLDEST}.0 or newer, got {found}: pip install -U openvino"
    return None


def to_openvino(encoder: "Encoder", *, int8: bool = False) -> int:
    """Let OpenVINO compute the network's features, in place; how many blocks it takes over.

    With `int8` that is only for networks with linear layers: 0 for others.
    """
    network = _network_of(encoder)
    if isinstance(network, VisionTransformer):
        network.__class__ = OpenVinoInt8Transformer if int8 else OpenVinoTransformer
        return len(network.layers)
    if isinstance(network, EfficientNetLite) and not int8:
        network.__class__ = OpenVinoEfficientNetLite
        return len(network.blocks())
    return 0


def _network_of(encoder: "Encoder") -> nn.Module | None:
    networks = (getattr(encoder, name, None) for name in ("model", "network"))
    return next((one for one in networks if isinstance(one, VisionTransformer | EfficientNetLite)), None)


class _Networks:
    """A model compiled, for one picture and for any number, with its weights and `config` as they are now."""

    def __init__(self, model: nn.Module, config: Any, *, int8: bool) -> None:
        self._model, self._config, self._watch, self._int8 = model, config, WeightsWatch(model), int8
        self._compiled: dict[int, Run] = {}

    def are_of(self, model: nn.Module, config: Any) -> bool:
        """Whether they still are what this model would be compiled to."""
        return self._model is model and self._config is config and self._watch.unchanged()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float32 -> (B, D) float32."""
        batch = 1 if x.shape[0] == 1 else -1
        if batch not in self._compiled:
            self._compiled[batch] = compiled(self._model, x[:1].detach(), batch, int8=self._int8)
        return self._compiled[batch](x)


def _networks(model: nn.Module, config: Any = None, *, int8: bool = False) -> _Networks:
    kept: _Networks | None = model.__dict__.get("_networks")
    if kept is None or not kept.are_of(model, config):
        kept = model.__dict__["_networks"] = _Networks(model, config, int8=int8)
    return kept
