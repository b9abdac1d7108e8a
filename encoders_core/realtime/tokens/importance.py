"""How much each row of each gate matters to the features: the gradient, measured on a frame of the camera itself.

A gate that lets a change `d` of one row wait makes an error of J d in the features, to first order, J the derivative of
the features by that row. With v standard normal, E|J' v|^2 is J's squared Frobenius norm, so a few backward passes with
random v give it for every row of every gate at once (Hutchinson's estimator). For a change of no particular direction
|J d| is then |J|_F |d| / sqrt(D): that is what gates compare with their threshold, in units of the features. The same goes
for the pixels of a patch, which wait to be embedded.
"""

from collections.abc import Generator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor

from encoders_core.models.layers import Block
from encoders_core.models.vit import VisionTransformer
from encoders_core.realtime.tokens.cache import GATES

PROBES = 2
"""Random directions: with 8 in place of 2, the rows needed for one fidelity fall by a twentieth at most."""


class Importance(NamedTuple):
    """How far a change of length 1 in no particular direction moves the features."""

    rows: Tensor
    """(depth, 4, N) float32: of each row at each gate."""
    patches: Tensor
    """(C, P) float32: of each patch, in one channel of its normalised pixels."""


def importance_steps(
    network: VisionTransformer, image: Tensor, *, seed: int, probes: int = PROBES
) -> Generator[None, None, Importance]:
    """(1, C, H, W) normalised -> yields between blocks, returns the importance of rows and patches.

    It costs 2 + 2 `probes` passes of the network. The same image and seed give the same numbers.
    """
    inputs = yield from _block_inputs(network, image)
    pull = _features_pull(network, inputs.pop(), probes, seed)
    found: list[Tensor] = []
    for block, x in zip(reversed(network.layers), reversed(inputs), strict=True):
        importance, pull = _pull_back(block, x, pull)
        found.append(importance)
        yield
    return Importance(torch.stack(found[::-1]), _pull_to_patches(network, image, pull))


@torch.no_grad()
def _block_inputs(network: VisionTransformer, image: Tensor) -> Generator[None, None, list[Tensor]]:
    """The input of each block, and the output of the last."""
    inputs = [network.embed(image)]
    for block in network.layers:
        inputs.append(block(inputs[-1]))
        yield
    return inputs


@torch.enable_grad()
def _features_pull(network: VisionTransformer, x: Tensor, probes: int, seed: int) -> list[Tensor]:
    """The last block's output, (1, N, D) -> the gradients by it of the features along random directions."""
    x = x.clone().requires_grad_()
    features = network.forward_head(network.norm(x))[0]
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(features.shape, generator=generator) for _ in range(probes)]
    return [torch.autograd.grad(features, x, along, retain_graph=True)[0] for along in directions]


@torch.enable_grad()
def _pull_to_patches(network: VisionTransformer, image: Tensor, pull: list[Tensor]) -> Tensor:
    """The gradients by the first block's input -> (C, P)."""
    patches, channels = network.patch_embed.unfold(image).requires_grad_(), network.config.in_chans
    embedded = network.embed_patches(patches, network.config.grid_hw)
    squares = torch.zeros(channels, patches.shape[1])
    for along in pull:
        (by_pixels,) = torch.autograd.grad(embedded, patches, along, retain_graph=True)
        squares += by_pixels[0].view(patches.shape[1], channels, -1).square().sum(dim=2).T
    return (squares * channels / (len(pull) * patches.shape[2])).sqrt()


@torch.enable_grad()
def _pull_back(block: Block, x: Tensor, pull: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A block's input and the gradients by its output -> (4, N) importance, and the gradients by its input."""
    x = x.clone().requires_grad_()
    normed = block.norm1(x)
    asking, asked = normed.clone(), normed.clone()  # one row, two gates
    q, k, v = block.attn.heads(asking, asked)
    looked = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    middle = x + block.ls1(block.attn.proj(looked))
    fed = block.norm2(middle)
    out = middle + block.ls2(block.mlp(fed))
    squares = torch.zeros(len(GATES), x.shape[1])
    back = []
    for along in pull:
        by_input, *by_gates = torch.autograd.grad(out, [x, asking, asked, looked, fed], along, retain_graph=True)
        back.append(by_input)
        squares += torch.stack([gate[0].square().sum(dim=1) for gate in by_gates])
    return (squares / (len(pull) * x.shape[-1])).sqrt(), back
