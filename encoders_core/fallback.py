"""EncoderWithFallback: pictures to vectors with the first backend that works, the same vectors from each of them."""

import dataclasses
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

import numpy as np

from encoders_core.backends.model import ArrayModel, Floats, Forward, open_jax, open_numpy, plain_input, read_directory
from encoders_core.errors import EncoderError, InputError, OptionError

if TYPE_CHECKING:
    from encoders_core.image_transform import ImageTransform
    from encoders_core.models.efficientnet_lite import EfficientNetLite
    from encoders_core.vision_encoder import VisionEncoder

logger = logging.getLogger(__name__)

Backend = Literal["torch", "jax", "numpy"]
BACKENDS: Final[tuple[Backend, ...]] = get_args(Backend)


@dataclass(frozen=True, kw_only=True)
class FallbackResult(Mapping[str, Any]):
    """Features and how they came about; fields are also keys, as in `result["features"]`."""

    features: Floats
    """(B, D) float32, numpy's whatever the backend."""
    backend: Backend
    """Which one made them."""
    fallback_used: bool
    """Whether it is another than the preferred one."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why the ones before it did not."""

    def __getitem__(self, key: str) -> Any:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Floats:
        return np.array(self.features, dtype=dtype, copy=copy)


class EncoderWithFallback:
    """Pictures -> vectors by `preferred_backend`, or, where that fails, by `fallback_backend` (several: in their order).

    `encoder`: a VisionEncoder, an EfficientNetLite, a directory that `VisionEncoder.save_pretrained` wrote (the only one
    that is read where torch is missing), or None for EfficientNet-Lite0 with its packaged weights. All backends compute
    in float32 from the same weights and agree to 1e-4; torch runs where the encoder is and in its dtype. A backend is
    opened when it is first needed and takes the weights as they are then. One that cannot be opened is not tried again,
    one that fails on a batch is. Each reason is logged once. Wrong input is the caller's error, never a reason.
    """

    def __init__(
        self,
        preferred_backend: Backend = "torch",
        fallback_backend: Backend | Sequence[Backend] = "numpy",
        *,
        encoder: "VisionEncoder | EfficientNetLite | str | os.PathLike[str] | None" = None,
    ) -> None:
        others = (fallback_backend,) if isinstance(fallback_backend, str) else tuple(fallback_backend)
        for name in (preferred_backend, *others):
            if name not in BACKENDS:
                raise OptionError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
        self.backends: tuple[Backend, ...] = tuple(dict.fromkeys((preferred_backend, *others)))
        self._source: _Source = _source(encoder)
        self._opened: dict[Backend, Forward] = {}
        self._closed: dict[Backend, str] = {}
        self._logged: set[str] = set()

    def encode_with_fallback(self, inputs: Any, normalize_output: bool = True) -> FallbackResult:
        """Pictures (see `load_images`; floats are normalised input) -> `FallbackResult`, of unit length by default.

        Raises InputError for what is no picture, EncoderError with every reason when no backend works.
        """
        x = self._source.input(inputs)
        reasons: dict[str, str] = {}
        for name in self.backends:
            features = self._try(name, x, reasons)
            if features is not None:
                if normalize_output:
                    norms = np.linalg.norm(features, axis=-1, keepdims=True)
                    features = features / np.maximum(norms, np.float32(1e-12))
                used = name != self.backends[0]
                return FallbackResult(features=features, backend=name, fallback_used=used, reasons=reasons)
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise EncoderError(f"no backend could encode: {told}")

    encode = encode_with_fallback

    def _try(self, name: Backend, x: Floats, reasons: dict[str, str]) -> Floats | None:
        """Features, or None and a reason."""
        if name in self._closed:
            reasons[name] = self._closed[name]
            return None
        try:
            if name not in self._opened:
                self._opened[name] = self._open(name)
            return np.asarray(self._opened[name](x), np.float32)
        except (InputError, OptionError):
            raise
        except Exception as exc:  # noqa: BLE001  whatever it is, the next backend may do without it
            reasons[name] = str(exc) if isinstance(exc, EncoderError) else f"{type(exc).__name__}: {exc}"
        if name not in self._opened:
            self._closed[name] = reasons[name]
        self._tell(name, reasons[name])
        return None

    def _open(self, name: Backend) -> Forward:
        if name == "torch":
            return self._source.torch_forward()
        model = self._source.arrays()
        return open_jax(model) if name == "jax" else open_numpy(model)

    def _tell(self, name: Backend, reason: str) -> None:
        following = self.backends[self.backends.index(name) + 1 :]
        message = f"backend {name} failed ({reason}); " + (f"trying {following[0]}" if following else "none is left")
        if message not in self._logged:
            self._logged.add(message)
            logger.warning("%s", message)


class _Source(Protocol):
    """The model as the backends want it."""

    def input(self, inputs: Any) -> Floats: ...

    def torch_forward(self) -> Forward: ...

    def arrays(self) -> ArrayModel: ...


class _Module:
    """A model that torch has."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def input(self, inputs: Any) -> Floats:
        from encoders_core.backends.model import torch_input  # noqa: PLC0415

        return torch_input(inputs, self._transform())

    def torch_forward(self) -> Forward:
        import torch  # noqa: PLC0415  may be missing

        module = self._module
        run = getattr(module, "forward_features", module)

        def forward(x: Floats) -> Floats:
            weight = next(module.parameters())
            training = [part for part in module.modules() if part.training]
            module.eval()
            try:
                with torch.no_grad():
                    features: Floats = run(torch.from_numpy(x).to(weight)).float().numpy(force=True)
            finally:
                for part in training:
                    part.training = True
            return features

        return forward

    def arrays(self) -> ArrayModel:
        network = getattr(self._module, "model", self._module)
        weights = {name: tensor.detach().float().numpy(force=True) for name, tensor in network.state_dict().items()}
        plain = dataclasses.asdict(self._transform())
        if network is self._module:
            return ArrayModel(family="efficientnet-lite0", config={}, weights=weights, preprocessing=plain)
        config = dataclasses.asdict(network.config)
        return ArrayModel(family="vit", config=config, weights=weights, preprocessing=plain)

    def _transform(self) -> "ImageTransform":
        from encoders_core.image_transform import ImageTransform  # noqa: PLC0415  torch's

        own: ImageTransform | None = getattr(self._module, "transform", None)
        return own or ImageTransform(interpolation="area", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


class _Directory:
    """A saved VisionEncoder; with torch it is opened as such, without torch its files are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._module: _Module | None = None
        self._model: ArrayModel | None = None

    def input(self, inputs: Any) -> Floats:
        if importlib.util.find_spec("torch") is None:
            return plain_input(inputs, self.arrays())
        return self._open().input(inputs)

    def torch_forward(self) -> Forward:
        return self._open().torch_forward()

    def arrays(self) -> ArrayModel:
        if self._module is not None:
            return self._module.arrays()
        if self._model is None:
            self._model = read_directory(self._path)
        return self._model

    def _open(self) -> _Module:
        if self._module is None:
            from encoders_core.vision_encoder import VisionEncoder  # noqa: PLC0415  torch's

            self._module = _Module(VisionEncoder.from_pretrained(self._path, local_files_only=True))
        return self._module


def _source(encoder: Any) -> "_Module | _Directory":
    if isinstance(encoder, str | os.PathLike):
        return _Directory(Path(encoder))
    if encoder is None:
        return _Module(_packaged())
    kind = type(encoder).__name__
    known = {base.__name__ for base in type(encoder).__mro__}
    if "MedicalEncoder" in known or not known & {"VisionEncoder", "EfficientNetLite"}:  # it reads pictures its own way
        raise OptionError(f"encoder: expected a VisionEncoder, an EfficientNetLite or a directory, got {kind}")
    return _Module(encoder)


def _packaged() -> Any:
    if importlib.util.find_spec("torch") is None:
        raise EncoderError(
            "the packaged EfficientNet-Lite0 is a torch file, and torch is not installed: give encoder=, the directory "
            "of a saved VisionEncoder, or pip install torch"
        )
    import torch  # noqa: PLC0415  may be missing

    from encoders_core.models.efficientnet_lite import EfficientNetLite  # noqa: PLC0415
    from encoders_core.weights.files import load_strictly  # noqa: PLC0415
    from encoders_core.weights.packaged import EFFICIENTNET_LITE0, load_packaged  # noqa: PLC0415

    network = EfficientNetLite().eval()
    tensors = load_packaged(EFFICIENTNET_LITE0)
    load_strictly(network, tensors, source="package", family="EfficientNet-Lite0", dtype=torch.float32)
    return network
