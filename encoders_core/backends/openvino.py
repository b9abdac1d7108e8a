"""A network's inference through OpenVINO, where it is installed; everything else about the encoder stays torch."""

import copy
import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from encoders_core.models.efficientnet_lite import EfficientNetLite
from encoders_core.models.efficientnet_packed import SIZE_HW, infers
from encoders_core.models.vit import VisionTransformer
from encoders_core.models.weights_watch import WeightsWatch

if TYPE_CHECKING:
    from encoders_core.encoder import Encoder


class OpenVinoTransformer(VisionTransformer):
    """(B, C, H, W) float32 at the model's own size -> (B, output_dim), any B, computed by OpenVINO.

    With gradients, in training, under autocast, for other sizes or for tokens it is torch's forward. When weights change
    or the model is reconfigured the network is compiled again. There are two, each with its copy of the weights, made when
    they are first wanted: for one picture, which is a little faster so, and for any number. OpenVINO chooses the precision: bfloat16 where the
    processor computes in it. It runs with torch's number of threads at the time it is compiled.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, output_dim)."""
        if not infers(self, x, (self.config.in_chans, *self.config.img_size)):
            return super().forward(x)
        return _networks(self, self.config)(x)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_networks"}


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
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'camvec[openvino]' (or: pip install openvino)"
    return None


def to_openvino(encoder: "Encoder") -> int:
    """Let OpenVINO compute the network's features, in place; how many blocks it takes over."""
    network = _network_of(encoder)
    if isinstance(network, VisionTransformer):
        network.__class__ = OpenVinoTransformer
        return len(network.layers)
    if isinstance(network, EfficientNetLite):
        network.__class__ = OpenVinoEfficientNetLite
        return len(network.blocks())
    return 0


def _network_of(encoder: "Encoder") -> nn.Module | None:
    networks = (getattr(encoder, name, None) for name in ("model", "network"))
    return next((one for one in networks if isinstance(one, VisionTransformer | EfficientNetLite)), None)


class _Networks:
    """A model compiled, for one picture and for any number, with its weights and `config` as they are now."""

    def __init__(self, model: nn.Module, config: Any) -> None:
        self._model, self._config, self._watch = model, config, WeightsWatch(model)
        self._compiled: dict[int, Any] = {}

    def are_of(self, model: nn.Module, config: Any) -> bool:
        """Whether they still are what this model would be compiled to."""
        return self._model is model and self._config is config and self._watch.unchanged()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float32 -> (B, D) float32."""
        batch = 1 if x.shape[0] == 1 else -1
        if batch not in self._compiled:
            self._compiled[batch] = _compile(_plain(self._model), x[:1].detach(), batch)
        pixels = x.detach().contiguous().numpy()
        found = self._compiled[batch](pixels, share_inputs=True, share_outputs=True)
        return torch.from_numpy(found[0].copy())


def _networks(model: nn.Module, config: Any = None) -> _Networks:
    kept: _Networks | None = model.__dict__.get("_networks")
    if kept is None or not kept.are_of(model, config):
        kept = model.__dict__["_networks"] = _Networks(model, config)
    return kept


class _Features(nn.Module):
    """The features of an EfficientNet as a forward, which is what is traced."""

    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_features(x)


def _plain(model: nn.Module) -> nn.Module:
    """The model as torch computes it, with the same weights."""
    plain: Any = copy.copy(model)
    plain.__dict__.pop("forward", None)  # what memory settings put around it
    plain.__class__ = VisionTransformer if isinstance(model, VisionTransformer) else EfficientNetLite
    return plain if isinstance(plain, VisionTransformer) else _Features(plain)


def _compile(plain: nn.Module, example: Tensor, batch: int) -> Any:
    import openvino  # noqa: PLC0415  optional, and large

    with warnings.catch_warnings():
        # OpenVINO traces: torch warns that this is deprecated, and of checks of shapes, here fixed but for the batch.
        warnings.simplefilter("ignore")
        network = openvino.convert_model(plain.eval(), example_input=example, input=[batch, *example.shape[1:]])
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(network, "CPU", settings)
