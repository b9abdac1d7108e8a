"""The rows that a ViT's blocks begin with: of whole frames, or of the patches that have changed since they were embedded."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from encoders_core.models.vit import VisionTransformer
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.tokens.patch_rows import Pixels, changed_patches, patch_rows
from encoders_core.realtime.tokens.plain import Floats, Indices
from encoders_core.realtime.tokens.row_product import NOTHING, Room, Shelf, linear_rows


@dataclass(slots=True)
class PatchMemory:
    """What a camera's patches were when they were last embedded, and what came of it."""

    pixels: Pixels
    """(H, W, 3)"""
    tokens: Floats
    """(N, D), prefix and patches."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.pixels.nbytes + self.tokens.nbytes


class Embedding:
    """Patches to rows, their places and the first norm with them."""

    def __init__(self, network: VisionTransformer, shelf: Shelf) -> None:
        self._network, self._side = network, network.config.patch_size
        self._project = linear_rows(_as_linear(network.patch_embed.proj), shelf)

    def whole(self, frame: NDArray[np.uint8], spec: InputSpec) -> Floats:
        """(H, W, 3) uint8 -> (N, D) float32, to the bit what the network makes of the normalised frame."""
        patches = torch.from_numpy(patch_rows(frame, spec, self._side))[None]
        embedded = self._network.embed_patches(patches, (frame.shape[0] // self._side, frame.shape[1] // self._side))
        tokens: Floats = embedded[0].contiguous().numpy()
        return tokens

    def renew(
        self,
        memory: PatchMemory,
        frame: NDArray[np.uint8],
        spec: InputSpec,
        limits: Floats,
        *,
        forced: Indices,
        room: Room,
    ) -> int:
        """Embed anew, in `memory`, the patches that are over `limits` in grey levels, and those `forced` -> how many."""
        changed = changed_patches(frame, memory.pixels, limits, forced, self._side)
        if len(changed):
            rows = self._project(patch_rows(frame, spec, self._side, changed), len(changed), room, NOTHING)
            placed = self._network.place_patches(torch.from_numpy(rows), torch.from_numpy(changed))
            memory.tokens[changed + self._network.config.prefix] = placed.numpy()
        return len(changed)


def _as_linear(conv: nn.Conv2d) -> nn.Linear:
    """The same weights over patches that lie as rows."""
    layer = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None, device="meta")
    layer.weight = nn.Parameter(conv.weight.detach().flatten(1), requires_grad=False)
    layer.bias = conv.bias  # type: ignore[assignment]  # None is what a layer without one has
    return layer
