"""What is computed from features, each metric with its definition and source. Features are (N, D) float32."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor

NEIGHBOURS: Final = 5
_FOLDS: Final = 5
_RIDGE: Final = 1e-3


def knn_accuracy(features: Tensor, labels: Sequence[int], k: int = NEIGHBOURS) -> tuple[float, int]:
    """Share of items whose k nearest others by cosine mostly have their label, and the k that was used.

    Leave-one-out; each neighbour votes with its cosine, as in Wu et al., https://arxiv.org/abs/1805.01978, and DINO's
    protocol, https://arxiv.org/abs/2104.14294. k is at most the size of the smallest class less one.
    """
    truth = _numbered(labels)
    k = max(1, min(k, int(torch.bincount(truth).min()) - 1))
    near = _similarity(features).topk(k, dim=1)
    votes = torch.zeros(len(truth), int(truth.max()) + 1, dtype=near.values.dtype)
    votes.scatter_add_(1, truth[near.indices], near.values.clamp(min=0.0) + 1e-6)
    return float((votes.argmax(dim=1) == truth).float().mean()), k


def linear_probe(features: Tensor, labels: Sequence[int]) -> float:
    """Share of items that a linear classifier on the frozen features gets right, cross-validated.

    Alain and Bengio, https://arxiv.org/abs/1610.01644. The classifier is ridge regression to the labels, over up to five
    parts with every class in each.
    """
    truth = _numbered(labels)
    folds = min(_FOLDS, int(torch.bincount(truth).min()))
    if folds < 2:
        return float("nan")
    targets = F.one_hot(truth).double()
    predicted = _held_out(_standard(features), targets, _stratified(truth, folds))
    return float((predicted.argmax(dim=1) == truth).float().mean())


def preservation(features: Tensor, reference: Tensor, k: int = NEIGHBOURS) -> dict[str, float]:
    """What an optimised encoder keeps of its reference on the same items.

    `cosine_mean`, `cosine_min` (nan where the widths differ), and `knn_overlap`: the share of each item's k nearest
    others that are the same for both, the local measure of Hamilton et al., https://aclanthology.org/D16-1229.
    """
    k = max(1, min(k, len(features) - 1))
    same_width = features.shape == reference.shape
    cosine = F.cosine_similarity(features, reference) if same_width else torch.tensor([float("nan")])
    near = [_similarity(one).topk(k, dim=1).indices for one in (features, reference)]
    shared = (near[0][:, :, None] == near[1][:, None, :]).any(dim=2).float().mean()
    return {"cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min()), "knn_overlap": float(shared)}


def temporal_order(clips: Tensor, backwards: Tensor, dimmed: Tensor) -> dict[str, float]:
    """Whether features know the order of the frames, (N, D) each -> shares and cosines.

    `accuracy`: the share of clips that lie nearer to themselves made a tenth darker than to themselves played backwards: 1 where order matters more than brightness; 0 for the mean of the frames, which is the same backwards. The task is
    order verification, Misra et al., https://arxiv.org/abs/1603.08561, as triplets, so that it needs no training.
    `cosine_backwards`, `cosine_dimmed`: the two mean similarities behind it.
    """
    back, dim = F.cosine_similarity(clips, backwards), F.cosine_similarity(clips, dimmed)
    share = float((dim > back + 1e-6).float().mean())  # the margin is rounding: equal features must not win by chance
    return {"accuracy": share, "cosine_backwards": float(back.mean()), "cosine_dimmed": float(dim.mean())}


def cross_modal_alignment(views: Mapping[str, Tensor]) -> dict[str, float]:
    """How well one modality finds the same item in another: recall at 1 among all items, mean over ordered pairs.

    The retrieval of CLIP, https://arxiv.org/abs/2103.00020. Beside it `chance` (1 / N), `cosine_matched` and
    `cosine_unmatched`, the mean similarity of the same and of different items, whose difference is what Wang and Isola,
    https://arxiv.org/abs/2005.10242, call alignment against uniformity.
    """
    recalls, matched, unmatched = [], [], []
    for first, second in permutations(views, 2):
        cosine = F.normalize(views[first], dim=-1) @ F.normalize(views[second], dim=-1).T
        own, count = cosine.diagonal(), len(cosine)
        # An item is found when no other is as near: equal features must not win by their place.
        found = (cosine >= own[:, None]).sum(dim=1) == 1
        recalls.append(float(found.float().mean()))
        matched.append(float(own.mean()))
        unmatched.append(float((cosine.sum() - own.sum()) / max(1, count * (count - 1))))
    count = len(next(iter(views.values())))
    means = [sum(values) / len(values) for values in (recalls, matched, unmatched)]
    names = ("recall_at_1", "cosine_matched", "cosine_unmatched")
    return {**dict(zip(names, means, strict=True)), "chance": 1.0 / count}


def information_preservation(fused: Tensor, sources: Mapping[str, Tensor]) -> dict[str, float]:
    """How much of each source a linear map can read back from the fused features: R squared on items held out.

    Ridge regression, five parts; 0 where it is no better than the mean of the source. What can be read out linearly is
    the notion of Alain and Bengio, https://arxiv.org/abs/1610.01644. By source name.
    """
    parts = torch.arange(len(fused)) % min(_FOLDS, len(fused))
    x, scores = _standard(fused), {}
    for name, source in sources.items():
        target = source.double() - source.double().mean(dim=0)
        left = (target - _held_out(x, target, parts)).square().sum()
        scores[name] = max(0.0, float(1.0 - left / target.square().sum()))
    return scores


def _similarity(features: Tensor) -> Tensor:
    """(N, N) cosine, an item is not its own neighbour."""
    unit = F.normalize(features.double(), dim=-1)
    cosine: Tensor = unit @ unit.T
    return cosine.fill_diagonal_(float("-inf"))


def _numbered(labels: Sequence[int]) -> Tensor:
    known = sorted(set(labels))
    return torch.tensor([known.index(label) for label in labels])


def _stratified(truth: Tensor, folds: int) -> Tensor:
    """(N,) the part of each item; every class is in each part."""
    parts = torch.empty_like(truth)
    for label in range(int(truth.max()) + 1):
        rows = (truth == label).nonzero()[:, 0]
        parts[rows] = torch.arange(len(rows)) % folds
    return parts


def _standard(features: Tensor) -> Tensor:
    """Centred, and scaled to a mean square of 1 over all, so that one ridge suits every encoder."""
    x = features.double()
    x = x - x.mean(dim=0)
    return x / x.square().mean().sqrt().clamp(min=1e-12)


def _held_out(x: Tensor, targets: Tensor, parts: Tensor) -> Tensor:
    """(N, targets) each row predicted by ridge regression on the other parts, through the (N, N) kernel."""
    predicted = torch.empty_like(targets)
    for part in range(int(parts.max()) + 1):
        train, test = parts != part, parts == part
        mean = targets[train].mean(dim=0)
        kernel = x[train] @ x[train].T / x.shape[1]
        ridge = _RIDGE * len(kernel) * torch.eye(len(kernel), dtype=x.dtype)
        weights = torch.linalg.solve(kernel + ridge, targets[train] - mean)
        predicted[test] = x[test] @ x[train].T / x.shape[1] @ weights + mean
    return predicted
