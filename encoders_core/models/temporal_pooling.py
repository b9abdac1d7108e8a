"""From the frames of a clip to one vector: attention, mean, max, or mean with what an LSTM adds."""

from typing import Literal

import torch
from torch import Tensor, nn

from encoders_core.errors import InputError
from encoders_core.models.pooling import masked_mean

Aggregation = Literal["attention", "mean", "max", "lstm"]


class TemporalPool(nn.Module):
    """(B, T, D) -> (B, D). Attention and LSTM start as the mean: their last weights are zero until they are trained."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = min(dim, 256)
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Linear(dim, 1, bias=False)
        self.motion_gain = nn.Parameter(torch.ones(()))
        self.lstm, self.correct = nn.LSTM(dim, hidden, batch_first=True), nn.Linear(hidden, dim)
        for parameter in (self.score.weight, self.correct.weight, self.correct.bias):
            nn.init.zeros_(parameter)

    def forward(
        self, x: Tensor, mask: Tensor, how: Aggregation, motion: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D), (B, T) True where a frame counts -> (B, D), and how much each frame weighs, (B, T), summing to 1.

        The weights of "max" are the share of dimensions that a frame gives; "lstm" has none. `motion` (B, T), in any
        unit, draws attention to frames with more of it than the clip has on average. Of a clip without any frame that
        counts the result means nothing; see `check_mask`.
        """
        if how == "max":
            best, index = x.masked_fill(~mask[:, :, None], -torch.inf).max(dim=1)
            votes = torch.zeros_like(mask, dtype=x.dtype).scatter_add(1, index, torch.ones_like(best))
            return best, votes / x.shape[-1]
        if how == "lstm":
            return self._lstm(x, mask), None
        weights = self.weights(x, mask, motion) if how == "attention" else _uniform(mask, x.dtype)
        return (weights[:, :, None] * x).sum(dim=1), weights

    def weights(self, x: Tensor, mask: Tensor, motion: Tensor | None = None) -> Tensor:
        """How much attention each frame gets, (B, T): softmax of a learnt score and of the standardised motion."""
        logits = self.score(self.norm(x))[:, :, 0]
        if motion is not None:
            logits = logits + self.motion_gain * standardise(motion.to(logits), mask)
        weights: Tensor = logits.masked_fill(~mask, -torch.inf).softmax(dim=1)
        return weights

    def _lstm(self, x: Tensor, mask: Tensor) -> Tensor:
        order = (~mask).long().argsort(dim=1, stable=True)
        packed = x.gather(1, order[:, :, None].expand_as(x))
        out = self.lstm(packed)[0]
        last = out[torch.arange(x.shape[0], device=x.device), mask.sum(dim=1) - 1]
        corrected: Tensor = masked_mean(x, mask) + self.correct(last)
        return corrected


def check_mask(mask: Tensor) -> None:
    """(B, T). Raises InputError when no frame of a clip counts. Apart, because it looks at data and export must not."""
    if not bool(mask.any(dim=1).all()):
        raise InputError("expected at least one frame in every clip, got a clip whose frames are all masked")


def standardise(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T) -> (B, T) with mean 0 and deviation 1 over the frames that count; zeros where all are alike."""
    weights = _uniform(mask, values.dtype)
    centred = values - (weights * values).sum(dim=1, keepdim=True)
    deviation = (weights * centred**2).sum(dim=1, keepdim=True).sqrt()
    return torch.where(deviation > 1e-6, centred / deviation.clamp(min=1e-6), torch.zeros_like(centred))


def _uniform(mask: Tensor, dtype: torch.dtype) -> Tensor:
    counted = mask.to(dtype)
    return counted / counted.sum(dim=1, keepdim=True)
