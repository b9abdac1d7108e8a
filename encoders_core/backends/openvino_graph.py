"""A network compiled by OpenVINO: in the precision that it chooses, or with linear layers in int8."""

import copy
import threading
import warnings
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoders_core.models.efficientnet_lite import EfficientNetLite, SameConv2d
from encoders_core.models.vit import VisionTransformer

Run = Callable[[Tensor], Tensor]


def compiled(model: nn.Module, example: Tensor, batch: int, *, int8: bool = False, exact: bool = False) -> Run:
    """(B, C, H, W) float32 -> (B, D) float32 with the weights as they are now, for `batch` pictures or, if it is -1, any number.

    OpenVINO chooses the precision: bfloat16 where the processor computes in it; `exact`: float32. With `int8` the weights of linear layers
    are symmetric 8-bit numbers with a scale a row, and their input is quantised as it comes, a scale for each `embed_dim`
    numbers of a row. It runs with torch's number of threads at the time it is compiled; threads that call it take turns.
    """
    import openvino  # noqa: PLC0415  optional, and large

    with warnings.catch_warnings():
        # OpenVINO traces: torch warns that this is deprecated, and of checks of shapes, here fixed but for the batch.
        warnings.simplefilter("ignore")
        network = openvino.convert_model(_plain(model), example_input=example, input=[batch, *example.shape[1:]])
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    if exact:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if int8 and isinstance(model, VisionTransformer):
        _quantize_weights(network)
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = model.config.embed_dim
    request = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()
    turn = threading.Lock()  # a request has one input and one output

    def run(x: Tensor) -> Tensor:
        pixels = openvino.Tensor(x.detach().contiguous().numpy(), shared_memory=True)
        with turn:
            request.set_input_tensor(pixels)
            request.infer(share_outputs=True)
            return torch.from_numpy(request.get_output_tensor().data.copy())

    return run


class CompiledSteps:
    """A network compiled for pictures of one size, in float32, for whoever works in steps; a picture is one."""

    def __init__(self, model: EfficientNetLite, size_hw: tuple[int, int]) -> None:
        self._run = compiled(model, torch.zeros(1, 3, *size_hw), 1, exact=True)

    def forward_steps(self, x: Tensor) -> Generator[None, None, Tensor]:
        """(B, 3, H, W) float32, normalised -> yields behind each picture, returns (B, D) float32."""
        features = []
        for picture in torch.split(x, 1):
            features.append(self._run(picture))
            yield
        return torch.cat(features)


class _FixedSizeConv(SameConv2d):
    """The same convolution for a trace: its padding is then constant, which OpenVINO lets its own convolutions do."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        return self.padded(x, int(x.shape[-2]), int(x.shape[-1]))


class _Features(nn.Module):
    """The features of an EfficientNet as a forward, which is what is traced."""

    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_features(x)


def _plain(model: nn.Module) -> nn.Module:
    """The model as torch computes it, with the same weights in the same memory."""
    if isinstance(model, VisionTransformer):
        plain = copy.copy(model)
        plain.__dict__.pop("forward", None)  # what memory settings put around it
        plain.__class__ = VisionTransformer
        return plain.eval()
    network: Any = copy.deepcopy(model, {id(one): one for one in (*model.parameters(), *model.buffers())})
    network.__class__ = EfficientNetLite
    for one in network.modules():
        if isinstance(one, SameConv2d):
            one.__class__ = _FixedSizeConv
    return _Features(network).eval()


def _quantize_weights(network: Any) -> None:
    """Put int8 weights times a scale a row in the place of every constant matrix that is multiplied by, in place."""
    from openvino import opset13 as ops  # noqa: PLC0415  optional, and large

    for product in network.get_ordered_ops():
        weight = _weight_of(product)
        if weight is None:
            continue
        scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
        rows = ops.constant(np.rint(weight / scales).astype(np.int8))
        scaled = ops.multiply(ops.convert(rows, "f32"), ops.constant(scales))
        product.input(1).replace_source_output(scaled.output(0))


def _weight_of(product: Any) -> Any:
    """The (D', D) float32 constant that a MatMul multiplies by, transposed; None for anything else."""
    if product.get_type_name() != "MatMul" or not product.get_attributes()["transpose_b"]:
        return None
    source = product.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "Reshape"):
        source = source.input_value(0).get_node()
    shape = product.input_value(1).get_partial_shape()
    if source.get_type_name() != "Constant" or shape.is_dynamic or len(shape) != 2:
        return None
    return np.asarray(source.data, np.float32).reshape(shape.to_shape())
