"""A ViT's inference through OpenVINO, where it is installed; everything else about the encoder stays torch."""

import copy
import importlib.util
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from encoders_core.models.packed_linear import weights_state
from encoders_core.models.vit import VisionTransformer

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
        if not self._suits(x):
            return super().forward(x)
        state = (self.config, weights_state(_parameters(self)))
        if self.__dict__.get("_of") != state:
            self.__dict__.update(_networks={}, _of=state)
        networks, batch = self.__dict__["_networks"], 1 if x.shape[0] == 1 else -1
        if batch not in networks:
            networks[batch] = _compiled(self, x[:1].detach(), batch)
        found = networks[batch](x.detach().contiguous().numpy())
        return torch.from_numpy(found[0].copy())

    def _suits(self, x: Tensor) -> bool:
        shape = (self.config.in_chans, *self.config.img_size)
        plain = torch.is_grad_enabled() or self.training or torch.is_autocast_enabled("cpu") or not x.numel()
        return not plain and x.dtype == torch.float32 and x.device.type == "cpu" and tuple(x.shape[1:]) == shape

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_networks", "_of")}


def openvino_obstacle(encoder: "Encoder") -> str | None:
    """Why OpenVINO cannot run this encoder; None where it can."""
    model = getattr(encoder, "model", None)
    if not isinstance(model, VisionTransformer) or model.config.pool == "none":
        return "only a VisionEncoder with one vector a picture runs through OpenVINO"
    if encoder.device.type != "cpu" or encoder.dtype != torch.float32:
        return "OpenVINO is for float32 encoders on the CPU"
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'camvec[openvino]' (or: pip install openvino)"
    return None


def to_openvino(encoder: Any) -> int:
    """Let OpenVINO compute the model's features, in place; how many blocks it takes over."""
    encoder.model.__class__ = OpenVinoTransformer
    return len(encoder.model.blocks)


def _parameters(module: nn.Module) -> Iterator[Tensor]:
    """What `module.parameters()` gives, in a fifth of the time: it is asked at every pass."""
    stack = [module]
    while stack:
        one = stack.pop()
        yield from (parameter for parameter in one._parameters.values() if parameter is not None)  # noqa: SLF001  see above
        stack.extend(child for child in one._modules.values() if child is not None)  # noqa: SLF001  see above


def _compiled(model: OpenVinoTransformer, example: Tensor, batch: int) -> Any:
    import openvino  # noqa: PLC0415  optional, and large

    plain: Any = copy.copy(model)
    plain.__class__ = VisionTransformer
    plain.__dict__.pop("forward", None)  # what memory settings put around it
    with warnings.catch_warnings():
        # OpenVINO traces: torch warns that this is deprecated, and of checks of shapes, here fixed but for the batch.
        warnings.simplefilter("ignore")
        network = openvino.convert_model(plain, example_input=example, input=[batch, *example.shape[1:]])
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(network, "CPU", settings)
