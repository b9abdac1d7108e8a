"""Bringing two encoders into one space: linear heads, fitted on pairs with InfoNCE while the encoders stay as they are."""

import copy
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from encoders_core.errors import InputError, OptionError

_MAX_LOG_SCALE: Final = math.log(100.0)


class AlignmentHeads(nn.Module):
    """One linear head a side into the common space, and the learnt scale of CLIP (https://arxiv.org/abs/2103.00020).

    The heads start without changing any angle where the space is wide enough, so that what the encoders agree on already
    stays; else as one random orthogonal projection that sides of equal width share.
    """

    def __init__(self, image_dim: int, text_dim: int, dim: int, *, seed: int = 0) -> None:
        super().__init__()
        self.image = nn.Linear(image_dim, dim, bias=False)
        self.text = nn.Linear(text_dim, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for head in (self.image, self.text):
            nn.init.eye_(head.weight)
            if head.in_features > dim:
                nn.init.orthogonal_(head.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """(N, image_dim) and (M, text_dim) -> (N, M) scaled cosines."""
        left, right = F.normalize(self.image(images), dim=-1), F.normalize(self.text(texts), dim=-1)
        return self.logit_scale.clamp(max=_MAX_LOG_SCALE).exp() * left @ right.T


@dataclass(frozen=True)
class FitReport:
    """How a fit went."""

    epochs: int
    """Run, at most as many as asked for."""
    stopped_early: bool
    best_epoch: int
    """Whose heads were kept; 0 is before the first, when nothing got better."""
    train_loss: list[float]
    """Mean over each epoch."""
    validation_loss: list[float]
    """Before the first epoch and after each, on the pairs held out, or on all pairs when too few to hold any out."""
    held_out: int
    recall_at_1_before: float
    """Share of held-out texts whose picture is the nearest of the held-out ones."""
    recall_at_1_after: float


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit. `patience`: epochs without a better validation loss before it stops."""

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    validation_share: float = 0.1
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("epochs", "patience"):
            if getattr(self, key) < 1:
                raise OptionError(f"{key}: expected a positive number, got {getattr(self, key)}")
        if self.batch_size < 2:
            raise OptionError(f"batch_size: a contrast needs at least 2 pairs, got {self.batch_size}")
        if not 0.0 <= self.validation_share < 1.0:
            raise OptionError(f"validation_share: expected 0 to below 1, got {self.validation_share}")
        if not self.learning_rate > 0.0 or self.weight_decay < 0.0:
            raise OptionError(
                f"expected a positive learning_rate and a weight_decay of at least 0, "
                f"got {self.learning_rate} and {self.weight_decay}"
            )


def info_nce(logits: Tensor, groups: Tensor) -> Tensor:
    """(N, N) scaled cosines of pairs, (N,) group of each -> the symmetric InfoNCE loss (https://arxiv.org/abs/1807.03748).

    Pairs of one group, such as pictures with the same caption, are not each other's negatives: they share the target.
    What even a perfect model could not get below then is taken off, so that 0 is perfect.
    """
    same = (groups[:, None] == groups[None, :]).to(logits.dtype)
    count = same.sum(dim=1, keepdim=True)
    target = same / count
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss - count.log().mean()


def fit_heads(
    heads: AlignmentHeads,
    images: Tensor,
    texts: Tensor,
    groups: Sequence[int],
    options: FitOptions,
    *,
    show_progress_bar: bool | None = None,
) -> FitReport:
    """Fit `heads` in place on pairs of features (N, image_dim) and (N, text_dim); the best epoch's heads are kept.

    The same inputs and seed give the same heads. Raises InputError for fewer than two different pairs.
    """
    different = len(set(groups))
    if different < 2:
        raise InputError(f"expected at least 2 pairs of different texts to contrast, got {different}")
    labels = torch.tensor(groups)
    generator = torch.Generator().manual_seed(options.seed)
    train, held = _split(len(labels), options.validation_share, generator)
    judge = held if len(held) else train

    def validate() -> float:
        with torch.no_grad():
            return info_nce(heads(images[judge], texts[judge]), labels[judge]).item()

    before = _recall_at_1(heads, images[judge], texts[judge], labels[judge])
    best, best_state, best_epoch = validate(), copy.deepcopy(heads.state_dict()), 0
    optimizer = torch.optim.AdamW(heads.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    losses, validations, epoch = [], [best], 0
    shown = sys.stderr.isatty() if show_progress_bar is None else show_progress_bar
    for epoch in track(range(1, options.epochs + 1), "Fitting", disable=not shown, console=Console(stderr=True)):
        batches = _shuffled(train, options.batch_size, generator)
        losses.append(_train_epoch(heads, optimizer, (images, texts, labels), batches))
        validations.append(validate())
        if validations[-1] < best:
            best, best_state, best_epoch = validations[-1], copy.deepcopy(heads.state_dict()), epoch
        if epoch - best_epoch >= options.patience:
            break
    heads.load_state_dict(best_state)
    return FitReport(
        epochs=epoch,
        stopped_early=epoch < options.epochs,
        best_epoch=best_epoch,
        train_loss=losses,
        validation_loss=validations,
        held_out=len(held),
        recall_at_1_before=before,
        recall_at_1_after=_recall_at_1(heads, images[judge], texts[judge], labels[judge]),
    )


def _split(count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random rows to train on and to hold out; none are held out when fewer than two would be, or would be left."""
    order = torch.randperm(count, generator=generator)
    held = int(count * share)
    if held < 2 or count - held < 2:
        held = 0
    return order[held:], order[:held]


def _shuffled(rows: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """`rows` in a new order, in batches; a last row alone is left out this time: it has no contrast."""
    order = rows[torch.randperm(len(rows), generator=generator)]
    starts = range(0, len(rows), batch_size)
    return [order[start : start + batch_size] for start in starts if start + 1 < len(rows)]


def _train_epoch(
    heads: AlignmentHeads,
    optimizer: torch.optim.Optimizer,
    pairs: tuple[Tensor, Tensor, Tensor],
    batches: Sequence[Tensor],
) -> float:
    images, texts, labels = pairs
    total = 0.0
    for batch in batches:
        loss = info_nce(heads(images[batch], texts[batch]), labels[batch])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.item()
    return total / len(batches)


def _recall_at_1(heads: AlignmentHeads, images: Tensor, texts: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        nearest = heads(images, texts).argmax(dim=0)
    return float((labels[nearest] == labels).float().mean())
