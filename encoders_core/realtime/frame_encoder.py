"""A model as the realtime encoder sees it: plan what a frame costs, then encode plans, resumable between blocks."""

import difflib
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.backends.openvino import package_obstacle
from encoders_core.backends.openvino_graph import CompiledSteps
from encoders_core.errors import InputError, OptionError
from encoders_core.models.efficientnet_lite import FEATURES, EfficientNetLite, fold
from encoders_core.preprocessing import Fit, InputSpec, normalise
from encoders_core.realtime.change import Change
from encoders_core.realtime.frame_gate import GateCalibration
from encoders_core.weights.files import load_strictly, read_tensors
from encoders_core.weights.packaged import EFFICIENTNET_LITE0, load_packaged


@dataclass(frozen=True, slots=True)
class EncoderDescriptor:
    """Which model the vectors come from. Two vectors can be compared when their fingerprints are equal."""

    model_id: str
    """The slug in topics and file names."""
    name: str
    fingerprint: str
    """16 hexadecimal digits over weights, input, pooling, head and number format."""
    dim: int
    trained: bool
    pooling: str
    input: InputSpec


@dataclass(slots=True)
class Plan:
    """What encoding a frame will do. `rows` of `rows_total` units of the model's work are computed anew."""

    state: Any
    """The camera's, from `new_state`; encoding may change it."""
    frame: NDArray[np.uint8]
    rows: int
    rows_total: int
    change: float
    """Share of the picture that differs from the one encoded before, 0 to 1."""
    cut: bool
    cold: bool
    """Everything is computed anew: first frame, cut, or reset."""
    predicted_ms: float | None = None
    """Time that it will take, if the encoder knows better than the scheduler's own measurements."""
    row_cap: int | None = None
    """Rows that may be computed anew, one of the encoder's `buckets`; set by the scheduler before the encoding starts.
    None: as many as the plan wants."""
    refresh: bool = False
    """Set before the encoding starts: a dense pass is due, as nothing but the age of what is remembered asks for one."""
    computed: int | None = None
    """Set by the encoding: how many rows' worth of work it was; None: `rows`."""
    study: bool = False
    """Set with `refresh` when there is time: what the encoder likes to know of a camera may be measured anew."""


class FrameEncoder(Protocol):
    """One model behind the realtime encoder. Weights live here, what a camera needs remembered in its state.

    A dense pass of a frame on its own, of no camera, is `encode([plan(new_state(), frame)])`: `dense_steps`.
    """

    @property
    def descriptor(self) -> EncoderDescriptor:
        """Which model this is."""
        ...

    @property
    def calibration(self) -> GateCalibration:
        """How its features react to change, for the frame gate."""
        ...

    @property
    def buckets(self) -> tuple[int, ...]:
        """The row caps that a plan may get, ascending; the last is `rows_total`, a dense pass. A dense model has that one."""
        ...

    def new_state(self) -> Any:
        """A fresh state for one camera."""
        ...

    def plan(self, state: Any, frame: NDArray[np.uint8], change: Change | None = None) -> Plan:
        """(H, W, 3) uint8 of the model's size, and its change against the reference (None: not measured) -> a plan.

        `rows` are those that its gate wants now, counted at the input. Cheap; the state stays as it is.
        """
        ...

    def set_fidelity(self, state: Any, scale: float) -> None:
        """Scale the thresholds of this camera's gates: 1.0 as shipped, smaller is more exact, 0.0 exact.

        Raises OptionError for a negative scale, and for a model of one bucket: its passes are exact, and the frame gate
        before it is what can be steered.
        """
        ...

    def encode(self, plans: Sequence[Plan]) -> Generator[None, None, NDArray[np.float32]]:
        """Plans of different cameras -> yields between blocks, returns (B, D) float32 features, not normalised.

        Each keeps to its own `row_cap`; one with `refresh` set is a dense pass.
        """
        ...


@runtime_checkable
class ScalableFrameEncoder(FrameEncoder, Protocol):
    """A frame encoder that also takes smaller square pictures, for less time and with less detail."""

    @property
    def sizes_px(self) -> tuple[int, ...]:
        """All sizes, its own first, then smaller ones."""
        ...

    def prepare(self, sizes_px: Sequence[int]) -> None:
        """Get ready for these sizes, so that none of them is slow when it comes first."""
        ...


@dataclass(slots=True)
class DenseState:
    """What a dense model remembers of a camera: whether it has seen it."""

    warm: bool = False


Backend = Literal["torch", "openvino"]
"""What computes the passes."""


class _Steps(Protocol):
    def forward_steps(self, x: torch.Tensor) -> Generator[None, None, torch.Tensor]: ...


class ConvFrameEncoder:
    """EfficientNet-Lite0 behind the protocol: every pass is dense, `rows` are the cells of its last grid, 7 x 7 at 224.

    Being convolutions all through, it takes smaller pictures as well. Their vectors lie in the same space, but not where
    those of the full picture lie: objects look smaller than in training (https://arxiv.org/abs/1906.06423). On frames of
    the built-in scenes the cosine to the full picture's vector is .88, .78, .72 in the median at 192, 160, 128.
    `backend`: torch or OpenVINO, both in float32 and equal but for rounding (3e-6), so with one fingerprint.
    """

    sizes_px: Final = (224, 192, 160, 128)
    _CELL_PX: Final = 32
    buckets: Final = ((sizes_px[0] // _CELL_PX) ** 2,)

    def __init__(
        self,
        network: EfficientNetLite,
        *,
        trained: bool,
        calibration: GateCalibration,
        fit: Fit = "squash",
        backend: Backend = "torch",
    ) -> None:
        if backend == "openvino" and (obstacle := package_obstacle()):
            raise OptionError(obstacle)
        spec = InputSpec((224, 224), fit=fit, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        self.calibration = calibration
        self.descriptor = EncoderDescriptor(
            model_id="efficientnet-lite0",
            name="EfficientNet-Lite0, ImageNet" if trained else "EfficientNet-Lite0, random weights",
            fingerprint=fingerprint(network.state_dict(), spec, pooling="mean", head="none", variant="float32"),
            dim=FEATURES,
            trained=trained,
            pooling="mean",
            input=spec,
        )
        self._plain = network.eval()
        self._made: dict[int, _Steps] = {}
        self._make: Callable[[EfficientNetLite, tuple[int, int]], _Steps] = (
            fold if backend == "torch" else CompiledSteps
        )
        self.prepare(self.sizes_px[:1])

    def prepare(self, sizes_px: Sequence[int]) -> None:
        """Lay the weights out for pictures of these sizes; in the layout of another size they cost what is saved."""
        for size in sizes_px:
            if size not in self._made:
                self._made[size] = self._make(self._plain, (size, size))

    def new_state(self) -> DenseState:
        """A camera not seen yet."""
        return DenseState()

    def plan(self, state: DenseState, frame: NDArray[np.uint8], change: Change | None = None) -> Plan:
        """(S, S, 3) uint8, S one of `sizes_px` -> a dense plan. Raises InputError for another size."""
        if frame.shape not in [(size, size, 3) for size in self.sizes_px]:
            raise InputError(f"expected a frame of (S, S, 3) with S one of {self.sizes_px}, got {frame.shape}")
        rows = (frame.shape[0] // self._CELL_PX) ** 2
        cut = change is not None and change.cut
        share = 1.0 if change is None else change.share
        return Plan(state, frame, rows, rows, change=share, cut=cut, cold=cut or not state.warm)

    def set_fidelity(self, state: DenseState, scale: float) -> None:  # noqa: ARG002  the protocol's signature
        """Raises OptionError: every pass is exact."""
        raise OptionError(f"{self.descriptor.name} has no gates to scale by {scale}: steer the frame gate before it")

    @torch.inference_mode()
    def encode(self, plans: Sequence[Plan]) -> Generator[None, None, NDArray[np.float32]]:
        """Plans of frames of one size -> yields between blocks, returns (B, 1280) float32 features, not normalised."""
        frames = torch.from_numpy(np.stack([plan.frame for plan in plans]))
        spec = replace(self.descriptor.input, size_hw=(frames.shape[1], frames.shape[2]))
        self.prepare([spec.size_hw[0]])
        features = yield from self._made[spec.size_hw[0]].forward_steps(normalise(frames, spec))
        for plan in plans:
            plan.state.warm = True
        result: NDArray[np.float32] = features.numpy()
        return result


def dense_steps(encoder: FrameEncoder, frame: NDArray[np.uint8]) -> Generator[None, None, NDArray[np.float32]]:
    """(H, W, 3) uint8 -> yields between blocks, returns (1, D) float32: a dense pass that no camera knows of."""
    return encoder.encode([encoder.plan(encoder.new_state(), frame)])


def sizes_px(encoder: FrameEncoder) -> tuple[int, ...]:
    """The picture sizes that an encoder takes, its own first. Raises OptionError when there is no other one."""
    own = encoder.descriptor.input.size_hw[0]
    sizes = encoder.sizes_px if isinstance(encoder, ScalableFrameEncoder) else (own,)
    if len(sizes) < 2:
        raise OptionError(
            f"adaptive_resolution needs a model of several sizes; {encoder.descriptor.name!r} takes {own} px alone"
        )
    return sizes


def fingerprint(
    weights: Mapping[str, torch.Tensor], spec: InputSpec, *, pooling: str, head: str, variant: str
) -> str:  # fmt: skip
    """16 hexadecimal digits that change when anything does that changes the vectors."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes())
    for field in fields(spec):
        digest.update(f"{field.name}={getattr(spec, field.name)!r}\n".encode())
    digest.update(f"pooling={pooling} head={head} variant={variant}".encode())
    return digest.hexdigest()[:16]


def _efficientnet_lite0(weights: Path | None, fit: Fit, backend: Backend) -> ConvFrameEncoder:
    network = EfficientNetLite()
    tensors = read_tensors(weights) if weights else load_packaged(EFFICIENTNET_LITE0)
    load_strictly(network, tensors, source=str(weights or "package"), family="EfficientNet-Lite0", dtype=torch.float32)
    # Measured over 15 clips of 12 cameras, 11,213 frames; the gain is set on the careful side of their median.
    calibration = GateCalibration(variance=172.3, gain=0.035)
    return ConvFrameEncoder(network, trained=True, calibration=calibration, fit=fit, backend=backend)


_ENCODERS: Final[dict[str, Callable[[Path | None, Fit, Backend], FrameEncoder]]] = {
    "efficientnet-lite0": _efficientnet_lite0
}


def load_frame_encoder(
    name: str = "efficientnet-lite0",
    *,
    weights: Path | None = None,
    fit: Fit = "squash",
    backend: Backend = "torch",
) -> FrameEncoder:
    """The frame encoder of that name, with its trained weights or those in the file `weights`.

    `fit` is how pictures fill its square. Raises OptionError for an unknown name or a backend that is not there, WeightsNotFoundError
    or WeightsError when its weights cannot be had.
    """
    if name not in _ENCODERS and Path(name).is_dir():
        from encoders_core.realtime.vit_loader import load_vit  # noqa: PLC0415  it knows this module

        if weights is not None:
            raise OptionError(f"{name} has weights of its own: expected no other file, got {weights}")
        if backend != "torch":
            raise OptionError(
                f"{name}: a ViT computes what changed within a picture, which is torch's; got {backend!r}"
            )
        return load_vit(name, fit)
    if name not in _ENCODERS:
        near = difflib.get_close_matches(name, _ENCODERS, n=1, cutoff=0.0)
        raise OptionError(
            f"unknown frame encoder {name!r}: did you mean {near[0]!r}? There are: {', '.join(sorted(_ENCODERS))}, "
            "and every directory with a ViT checkpoint"
        )
    return _ENCODERS[name](weights, fit, backend)
