"""EfficientNet-Lite0: (B, 3, 224, 224) float32 -> (B, 1280) features or (B, 1000) ImageNet logits.

Mingxing Tan and Quoc V. Le, https://arxiv.org/abs/1905.11946; the Lite variant has no squeeze-and-excitation and ReLU6
for swish. Two networks of the same weights: `EfficientNetLite` is plain, its parameters carry the names of the published
state dict; `FoldedEfficientNetLite` is what runs, with BatchNorm folded into the convolutions, resumable between blocks.
"""

from collections.abc import Generator
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders_core.draining import drain

FEATURES: Final = 1280
_BN_EPS: Final = 1e-3


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


_STEM_CHANNELS: Final = 32
_STAGES: Final = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: output ceil(n / stride), the odd pixel goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        return self.padded(x, *x.shape[-2:])

    def padded(self, x: Tensor, height: int, width: int) -> Tensor:
        """The same for an input that is `height` x `width`."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (height, width))
        return super().forward(functional.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise KxK, project 1x1: (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = in_channels * expand
        self.expands = expand > 1
        self.has_skip = stride == 1 and in_channels == out_channels
        if self.expands:
            self._expand_conv = SameConv2d(in_channels, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=_BN_EPS)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=_BN_EPS)
        self._project_conv = SameConv2d(inner, out_channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out_channels, eps=_BN_EPS)

    def convolutions(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """The convolutions in order, each with the BatchNorm that follows it; all but the last end in ReLU6."""
        expand = [(self._expand_conv, self._bn0)] if self.expands else []
        return [*expand, (self._depthwise_conv, self._bn1), (self._project_conv, self._bn2)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        y = x
        *activated, (project, norm) = self.convolutions()
        for conv, bn in activated:
            y = functional.relu6(bn(conv(y)))
        projected: Tensor = norm(project(y))
        return x + projected if self.has_skip else projected


class EfficientNetLite(nn.Module):
    """The plain network; parameter names are those of the published state dict. Random until a state dict is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, _STEM_CHANNELS, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(_STEM_CHANNELS, eps=_BN_EPS)
        blocks, channels = [], _STEM_CHANNELS
        for stage in _STAGES:
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, stage.channels, stage.kernel, stride, stage.expand))
                channels = stage.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, FEATURES, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(FEATURES, eps=_BN_EPS)
        self._fc = nn.Linear(FEATURES, 1000)

    def stem(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """The first convolution and its BatchNorm."""
        return self._conv_stem, self._bn0

    def blocks(self) -> list[InvertedResidual]:
        """The inverted residual blocks, in order."""
        return [block for block in self._blocks if isinstance(block, InvertedResidual)]

    def head(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """The last convolution and its BatchNorm."""
        return self._conv_head, self._bn1

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float32, normalised -> (B, 1280) float32, average-pooled."""
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        pooled: Tensor = functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float32, normalised -> (B, 1000) float32 ImageNet logits."""
        logits: Tensor = self._fc(self.forward_features(x))
        return logits


class _FoldedConv:
    """One convolution with its BatchNorm folded in, its kernel turned by 180 degrees, then ReLU6 if `relu6`."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, relu6: bool) -> None:
        if norm.running_mean is None or norm.running_var is None:
            raise AssertionError("BatchNorm without running statistics cannot be folded")
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = (conv.weight * scale[:, None, None, None]).flip((2, 3))
        self.weight = weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias = (norm.bias - norm.running_mean * scale).detach().clone()
        self.stride, self.groups, self.padding = conv.stride[0], conv.groups, conv.kernel_size[0] // 2
        self.relu6 = relu6

    def __call__(self, x: Tensor) -> Tensor:
        y = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        return functional.relu6(y, inplace=True) if self.relu6 else y


class _PackedConv(_FoldedConv):
    """The same through oneDNN directly: weights laid out once for its kernels, ReLU6 inside the convolution.

    `torch.ops.mkldnn` is what torch.compile itself emits on CPU; it is not a public interface, so whoever builds these
    checks their output against `_FoldedConv`.
    """

    def pack(self, shape: torch.Size) -> None:
        """Lay the weights out for inputs of `shape` (other sizes work, at the cost of a reordering per call)."""
        reorder = torch.ops.mkldnn._reorder_convolution_weight  # noqa: SLF001  the only door to oneDNN's weight layout
        stride, padding = [self.stride] * 2, [self.padding] * 2
        self.weight = reorder(self.weight.contiguous(), padding, stride, [1, 1], self.groups, list(shape))

    def __call__(self, x: Tensor) -> Tensor:
        convolve = torch.ops.mkldnn._convolution_pointwise  # noqa: SLF001  see the class docstring
        stride, padding = [self.stride] * 2, [self.padding] * 2
        after, bounds = ("hardtanh", [0.0, 6.0]) if self.relu6 else ("none", [])
        y: Tensor = convolve(x, self.weight, self.bias, padding, stride, [1, 1], self.groups, after, bounds, "")
        return y


def _fold_block(block: InvertedResidual, kind: type[_FoldedConv]) -> list[_FoldedConv]:
    *activated, project = block.convolutions()
    return [*(kind(*pair, relu6=True) for pair in activated), kind(*project, relu6=False)]


class FoldedEfficientNetLite:
    """The network for inference: (B, 3, H, W) float32 -> (B, 1280) float32, equal to the plain one but for rounding.

    Input and kernels are turned by 180 degrees: then "same" padding, which puts the odd pixel right and below, becomes
    the ordinary symmetric padding whose last row and column are never reached, and no copy is needed to pad. The average
    over the picture does not notice.
    """

    def __init__(self, plain: EfficientNetLite, *, packed: bool = False) -> None:
        kind = _PackedConv if packed else _FoldedConv
        self.packed = packed
        self._stem = kind(*plain.stem(), relu6=True)
        self._blocks = [(_fold_block(block, kind), block.has_skip) for block in plain.blocks()]
        self._head = kind(*plain.head(), relu6=True)

    @torch.inference_mode()
    def pack(self, size_hw: tuple[int, int]) -> None:
        """Lay all weights out for pictures of `size_hw`. Only for `packed=True`."""
        x = torch.zeros(1, 3, *size_hw).contiguous(memory_format=torch.channels_last)

        def pack_and_run(conv: _FoldedConv, x: Tensor) -> Tensor:
            if isinstance(conv, _PackedConv):
                conv.pack(x.shape)
            return conv(x)

        x = pack_and_run(self._stem, x)
        for convs, _ in self._blocks:
            for conv in convs:
                x = pack_and_run(conv, x)
        pack_and_run(self._head, x)

    @torch.inference_mode()
    def forward_steps(self, x: Tensor) -> Generator[None, None, Tensor]:
        """(B, 3, H, W) float32, normalised -> yields between blocks, returns (B, 1280) float32."""
        x = self._stem(x.flip((2, 3)).contiguous(memory_format=torch.channels_last))
        for convs, has_skip in self._blocks:
            yield
            y = x
            for conv in convs:
                y = conv(y)
            x = y.add_(x) if has_skip else y
        yield
        return self._head(x).mean((2, 3))

    def __call__(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float32, normalised -> (B, 1280) float32, in one go."""
        return drain(self.forward_steps(x))


def fold(plain: EfficientNetLite, size_hw: tuple[int, int]) -> FoldedEfficientNetLite:
    """The fastest network of `plain`'s weights that this build of torch runs correctly.

    Packed oneDNN convolutions when they exist here and agree with the folded ones on a test picture, else those.
    """
    folded = FoldedEfficientNetLite(plain)
    try:
        packed = FoldedEfficientNetLite(plain, packed=True)
        packed.pack(size_hw)
        probe = torch.randn(1, 3, *size_hw, generator=torch.Generator().manual_seed(0))
        expected, got = folded(probe), packed(probe)
    except (RuntimeError, AttributeError, TypeError):  # a build of torch without oneDNN, or with another signature
        return folded
    return packed if float((got - expected).norm()) <= 1e-4 * float(expected.norm()) else folded
