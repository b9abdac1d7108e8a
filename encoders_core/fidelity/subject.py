"""The model under test: one set of weights, its plain encoder, and what is known of it."""

import copy
import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from encoders_core.errors import OptionError
from encoders_core.fidelity.policy import LINEAR, VitCost
from encoders_core.models.positions import resize_positions
from encoders_core.models.vit import VisionTransformer, VitConfig
from encoders_core.preprocessing import InputSpec, normalise
from encoders_core.realtime.change import Change
from encoders_core.realtime.frame_encoder import (
    DenseState,
    EncoderDescriptor,
    FrameEncoder,
    Plan,
    load_frame_encoder,
)
from encoders_core.realtime.frame_gate import GateCalibration
from encoders_core.realtime.vit_frame_encoder import VitFrameEncoder

SHAPES: Final[dict[str, VitConfig]] = {
    "vit-ti-16": VitConfig(embed_dim=192, num_heads=3),
    "vit-s-16": VitConfig(embed_dim=384, num_heads=6),
    "vit-b-16": VitConfig(embed_dim=768, num_heads=12),
}
"""ViTs with random weights: for speed and exactness, never for fidelity."""


class DenseVitEncoder:
    """A ViT behind the frame-encoder protocol with no cache at all: every frame a full pass, last block for CLS only."""

    def __init__(self, network: VisionTransformer, descriptor: EncoderDescriptor, *, variance: float) -> None:
        self.network, self.descriptor = network.eval(), descriptor
        self.calibration = GateCalibration(variance=variance, gain=_GAIN)
        self.cost = VitCost.of(network.config, descriptor.input.size_hw)

    @property
    def buckets(self) -> tuple[int, ...]:
        """One: a dense pass."""
        return (int(self.cost.plain_rows[:, list(LINEAR)].sum()),)

    def new_state(self) -> DenseState:
        """A camera not seen yet."""
        return DenseState()

    def set_fidelity(self, state: DenseState, scale: float) -> None:  # noqa: ARG002  the protocol's signature
        """Raises OptionError: every pass is exact."""
        raise OptionError(f"{self.descriptor.name} has no gates to scale by {scale}: steer the frame gate before it")

    def plan(self, state: DenseState, frame: NDArray[np.uint8], change: Change | None = None) -> Plan:
        """(H, W, 3) uint8 of the model's size -> a dense plan; `rows` are those of all layers."""
        rows = self.buckets[-1]
        cut = change is not None and change.cut
        share = 1.0 if change is None else change.share
        return Plan(state, frame, rows, rows, change=share, cut=cut, cold=cut or not state.warm)

    @torch.inference_mode()
    def encode(self, plans: Sequence[Plan]) -> Generator[None, None, NDArray[np.float32]]:
        """Plans -> yields once, returns (B, D) float32 features, not normalised."""
        frames = torch.from_numpy(np.stack([plan.frame for plan in plans]))
        features: NDArray[np.float32] = self.network(normalise(frames, self.descriptor.input)).numpy()
        yield
        for plan in plans:
            plan.state.warm = True
        return features

    def calibrated(self, variance: float) -> "DenseVitEncoder":
        """The same with `variance` for its features' variance over many scenes."""
        twin = copy.copy(self)
        twin.calibration = dataclasses.replace(self.calibration, variance=variance)
        return twin

    def at_size(self, size_px: int) -> "DenseVitEncoder":
        """The same weights for square pictures of another size, the table of positions resized once."""
        spec = dataclasses.replace(self.descriptor.input, size_hw=(size_px, size_px))
        descriptor = dataclasses.replace(self.descriptor, input=spec)
        return DenseVitEncoder(resized(self.network, size_px), descriptor, variance=self.calibration.variance)


_GAIN: Final = 0.035  # of EfficientNet-Lite0; the gate learns each camera's own within some tens of frames


def resized(network: VisionTransformer, size_px: int) -> VisionTransformer:
    """A twin of `network` for square pictures of `size_px`; all weights but the table of positions are shared."""
    config = network.config
    twin = copy.copy(network)
    twin._parameters = dict(network._parameters)  # noqa: SLF001  one tensor differs; a deep copy would double the weights
    twin.config = dataclasses.replace(config, img_size=(size_px, size_px))
    if network.pos_embed is not None:
        prefix = 0 if config.no_embed_class else config.prefix
        table = resize_positions(
            network.pos_embed.detach(), config.grid_hw, twin.config.grid_hw, prefix, config.position_resize
        )
        twin.pos_embed = nn.Parameter(table, requires_grad=False)
    return twin


@dataclass(frozen=True)
class Subject:
    """One model: its plain encoder, what ships of it, the ViT inside if it is one, and its variance if that is known.

    Both encoders run the same weights through the same layers.
    """

    name: str
    encoder: FrameEncoder
    shipped: FrameEncoder
    vit: DenseVitEncoder | None
    variance: float | None

    def calibrated(self, variance: float) -> "Subject":
        """The same, its gates told that the features vary by `variance`; a model that knows its own keeps that."""
        if self.variance is not None or self.vit is None:
            return self
        vit = self.vit.calibrated(variance)
        return dataclasses.replace(self, encoder=vit, vit=vit)

    @property
    def spec(self) -> InputSpec:
        """The picture that it wants."""
        return self.encoder.descriptor.input


def load_subject(model: str) -> Subject:
    """A ViT directory, a shape of `SHAPES` with random weights, or the name of a frame encoder.

    Raises OptionError for a preprocessing that a camera cannot deliver, WeightsNotFoundError or WeightsError.
    """
    if model in SHAPES:
        return random_subject(model)
    shipped = load_frame_encoder(model)
    if isinstance(shipped, VitFrameEncoder):
        return vit_subject(shipped)
    return Subject(model, shipped, shipped, None, shipped.calibration.variance)


def random_subject(shape: str, *, size_px: int = 224, seed: int = 0) -> Subject:
    """A ViT of the shape called so, with random weights: for speed, never for fidelity."""
    config = dataclasses.replace(SHAPES[shape], img_size=(size_px, size_px))
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    network = VisionTransformer(config)
    torch.random.set_rng_state(generator)
    spec = InputSpec((size_px, size_px), mean=(0.5,) * 3, std=(0.5,) * 3)
    return vit_subject(VitFrameEncoder(network, spec, model_id=shape, name=shape, trained=False, variance=1.0))


def vit_subject(shipped: VitFrameEncoder) -> Subject:
    """The ViT that ships, and its plain passes: with the layers that it has laid out for itself."""
    made, network = shipped.descriptor, shipped.passes.network
    plain = DenseVitEncoder(network, made, variance=shipped.calibration.variance)
    return Subject(made.model_id, plain, shipped, plain, None)
