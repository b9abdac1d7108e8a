"""The contenders of `camvec bench encoders`: the same weights, run by transformers, by us, by ONNX Runtime and OpenVINO."""

import copy
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from encoders_core.hardware import AnyEncoder, optimize_for_hardware
from encoders_core.models.efficientnet_lite import EfficientNetLite, fold
from encoders_core.packing import pack_linears
from encoders_core.text_encoder import TextEncoder
from encoders_core.vision_encoder import VisionEncoder
from encoders_core.weights.packaged import EFFICIENTNET_LITE0, load_packaged

Run = Callable[[], Tensor]

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "vit-ti16": {"hidden_size": 192, "num_attention_heads": 3},
    "vit-s16": {"hidden_size": 384, "num_attention_heads": 6},
    "vit-b16": {"hidden_size": 768, "num_attention_heads": 12},
    "clip-vit-b32": {"hidden_size": 768, "num_attention_heads": 12, "patch_size": 32, "projection_dim": 512},
    "vit-micro": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 32},
}
"""transformers' words; what is not said is ViT's default: 12 layers, patches of 16, pictures of 224. "micro" is for trying
the command out."""
EFFICIENTNET: Final = "efficientnet-lite0"
MODELS: Final = ("vit-ti16", "vit-s16", "vit-b16", "clip-vit-b32", EFFICIENTNET)
KNOWN: Final = (*MODELS, "vit-micro")


@dataclass
class Contest:
    """One model: who runs it, who cannot and why, and what a pass costs."""

    runs: dict[str, Run] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    flops: int = 0
    """Floating-point operations of one pass of the plain network."""
    baseline: str = "transformers"

    def enter(self, name: str, build: Callable[[], Run], package: str | None = None) -> None:
        """Add a contender, or the reason why it is not there."""
        if package is not None and importlib.util.find_spec(package) is None:
            self.absent[name] = f"{package} is not installed: pip install 'camvec[bench]'"
            return
        try:
            run = build()
            with torch.inference_mode():
                run()
        except Exception as exc:  # noqa: BLE001  whatever a contender cannot do is its reason to be absent
            self.absent[name] = f"{type(exc).__name__}: {str(exc).strip().splitlines()[0] if str(exc).strip() else ''}"
        else:
            self.runs[name] = run


def contest(name: str) -> Contest:
    """The contenders for the model called `name`, random weights, one picture at the model's size."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="camvec-bench-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exporters warn of what is deprecated in one another
        return _efficientnet(Path(folder)) if name == EFFICIENTNET else _vit(name, Path(folder))


def _vit(name: str, folder: Path) -> Contest:
    made = Contest()
    theirs = _transformers_model(name, folder)
    encoder = VisionEncoder.from_pretrained(folder, show_progress_bar=False)
    x = torch.randn(1, 3, *encoder.config.img_size)
    if theirs is None:
        made.absent["transformers"] = "transformers is not installed: pip install 'camvec[bench]'"
        made.baseline = "camvec"
    else:
        made.enter("transformers", lambda: lambda: _features_of(theirs(x)))
    made.flops = _flops(lambda: encoder.model.forward_head(encoder.model.forward_features(x)))
    made.enter("camvec", lambda: lambda: _tensor(encoder.model(x)))
    packed = copy.deepcopy(encoder.model)
    made.notes["camvec packed"] = f"float32, {pack_linears(packed)} linear layers through oneDNN"
    made.enter("camvec packed", lambda: lambda: _tensor(packed(x)))
    auto = _auto(made, encoder)
    made.enter("camvec auto", lambda: lambda: _tensor(auto.model(x)))
    _exported(made, encoder.model, x, folder)
    return made


def _efficientnet(folder: Path) -> Contest:
    made, plain = Contest(baseline="torch eager"), EfficientNetLite().eval()
    plain.load_state_dict(load_packaged(EFFICIENTNET_LITE0))  # random ones would make features of no size
    x = torch.randn(1, 3, 224, 224)
    features = _FeaturesOf(plain).eval()
    made.absent["transformers"] = "transformers has no EfficientNet-Lite; the baseline is the plain network in torch"
    made.flops = _flops(lambda: features(x))
    made.enter("torch eager", lambda: lambda: _tensor(features(x)))
    folded = fold(plain, (224, 224))
    made.notes["camvec"] = f"folded, {'packed for oneDNN' if folded.packed else 'not packed'}: what ships"
    made.enter("camvec", lambda: lambda: folded(x))
    made.enter("camvec auto", lambda: _auto_efficientnet(made, plain, x))
    _exported(made, features, x, folder)
    return made


def _auto_efficientnet(made: Contest, plain: EfficientNetLite, x: Tensor) -> Run:
    """The features inside what `optimize_for_hardware` makes of the encoder that has this network."""
    from encoders_core.search.bridge import ClassNameBridge

    encoder = ClassNameBridge(class_vectors=torch.eye(1000, TextEncoder.from_pretrained().output_dim))
    encoder.network = plain
    auto = _auto(made, encoder)
    return lambda: auto.network.forward_features(x)


def _auto(made: Contest, encoder: AnyEncoder) -> AnyEncoder:
    """`optimize_for_hardware`, and a note of what it chose."""
    threads = torch.get_num_threads()
    auto = optimize_for_hardware(encoder)
    torch.set_num_threads(threads)  # "auto" sets one thread for the process; the contenders have the same number
    made.notes["camvec auto"] = "; ".join(f"{option}: {how}" for option, how in _choices(auto).items()) or "as it was"
    return auto


class _FeaturesOf(nn.Module):
    """The features of an EfficientNet as a module's forward, which is what exporters take."""

    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1280)."""
        return self.network.forward_features(x)


def _transformers_model(name: str, folder: Path) -> Any:
    """The model in transformers, saved to `folder`; without transformers None, and an encoder of ours of that shape."""
    shape = dict(SHAPES[name])
    if importlib.util.find_spec("transformers") is None:
        _save_ours(shape, folder)
        return None
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    shape["intermediate_size"] = 4 * shape["hidden_size"]
    model: Any
    if "projection_dim" in shape:
        model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**shape))
    else:
        model = transformers.ViTModel(transformers.ViTConfig(**shape), add_pooling_layer=False)
    model.eval().save_pretrained(folder)
    return model


def _save_ours(shape: dict[str, Any], folder: Path) -> None:
    VisionEncoder(
        image_size=shape.get("image_size", 224),
        patch_size=shape.get("patch_size", 16),
        num_layers=shape.get("num_hidden_layers", 12),
        hidden_dim=shape["hidden_size"],
        num_heads=shape["num_attention_heads"],
        output_dim=shape.get("projection_dim"),
    ).save_pretrained(folder)


def _features_of(output: Any) -> Tensor:
    embeds = getattr(output, "image_embeds", None)
    return _tensor(output.last_hidden_state[:, 0] if embeds is None else embeds)


def _choices(encoder: Any) -> dict[str, str]:
    measured = ("memory_format", "packing", "quantization", "backend")
    return {option: how for option, how in encoder.optimization.applied.items() if option in measured}


def _exported(made: Contest, model: nn.Module, x: Tensor, folder: Path) -> None:
    made.enter("onnxruntime", lambda: _onnxruntime(model, x, folder), "onnxruntime")
    for name, hint in (("openvino", None), ("openvino float32", "f32")):
        made.enter(name, lambda hint=hint: _openvino(model, x, hint), "openvino")  # type: ignore[misc]
    made.notes["openvino"] = "in the precision that it chooses itself"


def _onnxruntime(model: nn.Module, x: Tensor, folder: Path) -> Run:
    import onnxruntime

    path = folder / "model.onnx"
    with torch.no_grad():
        torch.onnx.export(model, (x,), str(path), dynamo=False, opset_version=17, input_names=["x"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    array = x.numpy()
    return lambda: torch.from_numpy(session.run(None, {"x": array})[0])


def _openvino(model: nn.Module, x: Tensor, precision: str | None) -> Run:
    import openvino

    network = openvino.convert_model(model, example_input=x, input=list(x.shape))
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    compiled, array = openvino.Core().compile_model(network, "CPU", settings), x.numpy()
    return lambda: torch.from_numpy(compiled(array)[0].copy())


def _flops(run: Run) -> int:
    """Two for each multiply-add of a whole forward pass, attention written out: the counter does not know the kernels."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        run()
    return int(counter.get_total_flops())


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value)
