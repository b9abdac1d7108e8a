"""EncoderBenchmark: how fast, how large and how good encoders are, on data that is said, with nothing made up."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from encoders_core.benchmarking import metrics as formulas
from encoders_core.benchmarking.datasets import DataSet, Kind, resolve
from encoders_core.benchmarking.measuring import (
    LEAST_ITEMS,
    Embedder,
    Run,
    encode_and_time,
    played,
    throughput,
    until,
)
from encoders_core.benchmarking.results import UNITS, BenchmarkResults, EncoderScores
from encoders_core.encoder import Encoder
from encoders_core.errors import OptionError
from encoders_core.options import refuse_unknown

METRICS: Final = tuple(UNITS)
_COMES_WITH_QUALITY: Final[dict[Kind, tuple[str, ...]]] = {
    "video": ("temporal_quality",),
    "features": ("alignment_score", "info_preservation"),
    "pairs": ("alignment_score",),
}
_REST_SHARE: Final = 0.2
"""Of the budget for each of throughput, preservation, and what a kind has beside; 0.6 goes to timing."""

Found = tuple[float, dict[str, float]]


class _NotApplicableError(Exception):
    """Raised inside when a metric has no meaning for this encoder or data set: the reason."""


class EncoderBenchmark:
    """Encoders by name, each on a data set, measured within a budget of time.

    `test_datasets` names one for each encoder: a registered name (textures, digits, motions, latents, photographs,
    sentences), a folder (`read_folder` says how it looks), or a `DataSet`; without it the small synthetic one of the
    encoder's kind. `imagenet_val_subset`, `kinetics_val_subset` and `multimodal_test_set` are sets that nobody may ship:
    they resolve to small substitutes, and `stands_for` in the result says so. `references` are the encoders that optimised
    ones are compared with. `time_budget_s` bounds each encoder, beyond it only four items are encoded all the same.

    Metrics (see `run_comprehensive_benchmark`) -> one float each, and details:

    - encoding_time: mean milliseconds of encoding one item with its preprocessing, wall clock, after one call to warm up;
      p50_ms, p95_ms, p99_ms, max_ms.
    - memory_usage: highest resident memory of this process in GB (1e9 bytes) while the first item is encoded, everything
      included; growth_gb by that item, weights_gb. The kernel's VmHWM, see `PeakMemory`.
    - throughput: items a second in batches of `batch_size`.
    - feature_quality: `knn_accuracy`; linear_probe, chance, k. Needs labels; for the kinds below it brings more.
    - accuracy_preservation: mean cosine to the reference encoder; cosine_min, knn_overlap, see `preservation`.
    - temporal_quality (videos): whether the features know the order of frames, see `temporal_order`.
    - alignment_score (features, pairs): see `cross_modal_alignment`. A combiner is given one modality at a time.
    - info_preservation (features): see `information_preservation`, mean over modalities.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        test_datasets: Mapping[str, str | os.PathLike[str] | DataSet] | None = None,
        *,
        references: Mapping[str, Encoder] | None = None,
        time_budget_s: float = 10.0,
        batch_size: int = 8,
    ) -> None:
        if not encoders:
            raise OptionError("encoders: expected at least one, got none")
        refuse_unknown(test_datasets or {}, encoders, "test_datasets")
        refuse_unknown(references or {}, encoders, "references")
        if not time_budget_s > 0 or batch_size < 1:
            raise OptionError(
                f"time_budget_s, batch_size: expected positive numbers, got {time_budget_s}, {batch_size}"
            )
        self.encoders, self.references = dict(encoders), dict(references or {})
        self.data = {name: resolve((test_datasets or {}).get(name), one) for name, one in encoders.items()}
        self.time_budget_s, self.batch_size = time_budget_s, batch_size

    def run_comprehensive_benchmark(self, metrics: Sequence[str] = METRICS, iterations: int = 100) -> BenchmarkResults:
        """Results by the name of the encoder, then by metric: floats. `iterations` is a maximum within the budget.

        "feature_quality" brings the other quality metrics of the encoder's kind with it, and a metric that is named but
        belongs to another kind is reported in `not_applied`, as everything that cannot be measured. Raises OptionError.
        """
        refuse_unknown(metrics, METRICS, "metrics")
        if iterations < 1:
            raise OptionError(f"iterations: expected a positive number, got {iterations}")
        scores = {name: self._score(name, tuple(metrics), iterations) for name in self.encoders}
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
        return BenchmarkResults(scores, machine)

    def _score(self, name: str, asked: tuple[str, ...], iterations: int) -> EncoderScores:
        encoder, data, started = self.encoders[name], self.data[name], time.perf_counter()
        more = _COMES_WITH_QUALITY.get(data.kind, ()) if "feature_quality" in asked else ()
        embed = Embedder(encoder, data)
        run = encode_and_time(embed, iterations, self.time_budget_s)
        values, details, reasons = dict[str, float](), dict[str, dict[str, float]](), dict[str, str]()
        for metric in dict.fromkeys((*asked, *more)):
            try:
                values[metric], details[metric] = self._measures()[metric](name, embed, run)
            except _NotApplicableError as why:
                reasons[metric] = str(why)
        return EncoderScores(
            metrics=values,
            details=details,
            not_applied=reasons,
            data_set=data.name,
            data_description=data.description,
            stands_for=data.stands_for,
            trained=encoder.trained,
            iterations=len(run.times_s),
            item_count=len(run.features),
            seconds=time.perf_counter() - started,
        )

    def _measures(self) -> dict[str, Callable[[str, Embedder, Run], Found]]:
        return {
            "encoding_time": self._encoding_time,
            "memory_usage": self._memory_usage,
            "throughput": self._throughput,
            "feature_quality": self._feature_quality,
            "accuracy_preservation": self._accuracy_preservation,
            "temporal_quality": self._temporal_quality,
            "alignment_score": self._alignment_score,
            "info_preservation": self._info_preservation,
        }

    def _encoding_time(self, _name: str, _embed: Embedder, run: Run) -> Found:
        times_ms = torch.tensor(run.times_s, dtype=torch.float64) * 1e3
        quantiles = torch.quantile(times_ms, torch.tensor([0.5, 0.95, 0.99, 1.0], dtype=torch.float64)).tolist()
        spread = dict(zip(("p50_ms", "p95_ms", "p99_ms", "max_ms"), quantiles, strict=True))
        return float(times_ms.mean()), spread

    def _memory_usage(self, _name: str, embed: Embedder, run: Run) -> Found:
        weights = sum(tensor.nbytes for tensor in (*embed.encoder.parameters(), *embed.encoder.buffers()))
        return run.peak_bytes / 1e9, {"growth_gb": run.growth_bytes / 1e9, "weights_gb": weights / 1e9}

    def _throughput(self, _name: str, embed: Embedder, run: Run) -> Found:
        per_item_s = sum(run.times_s) / len(run.times_s)
        found = throughput(embed, self.batch_size, _REST_SHARE * self.time_budget_s, per_item_s)
        return found.pop("items_per_s"), found

    def _feature_quality(self, _name: str, embed: Embedder, run: Run) -> Found:
        if embed.data.labels is None:
            raise _NotApplicableError(f"{embed.data.name} has no labels")
        features, labels = _of_classes_with_two(run.features, embed.data.labels)
        counts = torch.bincount(torch.tensor(labels, dtype=torch.long))
        if int((counts > 0).sum()) < 2:
            raise _NotApplicableError(
                f"among the first {len(run.features)} items there are not two classes of two items: more iterations, "
                "or more time"
            )
        accuracy, k = formulas.knn_accuracy(features, labels)
        probe = formulas.linear_probe(features, labels)
        chance = float(counts.max()) / len(labels)
        return accuracy, {"linear_probe": probe, "chance": chance, "k": k, "items": len(labels)}

    def _accuracy_preservation(self, name: str, embed: Embedder, run: Run) -> Found:
        if name not in self.references:
            raise _NotApplicableError("there is no reference to compare with: name one in references")
        other = Embedder(self.references[name], embed.data)
        rows = until(_REST_SHARE * self.time_budget_s, len(run.features), lambda i: other(embed.data.take([i])))
        if len(rows) < LEAST_ITEMS:
            rows += [other(embed.data.take([i])) for i in range(len(rows), min(LEAST_ITEMS, len(run.features)))]
        found = formulas.preservation(run.features[: len(rows)], torch.cat(rows))
        found = {key: value for key, value in found.items() if value == value}  # noqa: PLR0124  nan is no number for JSON
        if "cosine_mean" not in found:
            raise _NotApplicableError("the reference has features of another width")
        return found.pop("cosine_mean"), {**found, "items": len(rows)}

    def _temporal_quality(self, _name: str, embed: Embedder, run: Run) -> Found:
        if embed.data.kind != "video":
            raise _NotApplicableError(f"an encoder of {embed.data.kind} sees no order in time")

        def both(index: int) -> list[Tensor] | None:
            changed = played(embed.data.take([index])[0])
            return None if changed is None else [embed([clip]) for clip in changed]

        try:
            found = until(_REST_SHARE * self.time_budget_s, len(run.features), both)
        except OptionError as exc:
            raise _NotApplicableError(str(exc)) from exc
        kept = [(row, clips) for row, clips in enumerate(found) if clips is not None]
        if not kept:
            raise _NotApplicableError("every clip is the same backwards")
        rows = [row for row, _ in kept]
        backwards, dimmed = (torch.cat([clips[side] for _, clips in kept]) for side in (0, 1))
        scores = formulas.temporal_order(run.features[rows], backwards, dimmed)
        return scores.pop("accuracy"), {**scores, "items": len(rows)}

    def _alignment_score(self, _name: str, embed: Embedder, run: Run) -> Found:
        data, encoder = embed.data, embed.encoder
        if data.kind not in ("features", "pairs"):
            raise _NotApplicableError(f"an encoder of {data.kind} has one modality, there is nothing to align")
        if len(run.features) < 2:
            raise _NotApplicableError("one sample is always found: expected at least two")
        rows = list(range(len(run.features)))
        views: dict[str, Tensor]
        if data.kind == "pairs":
            texts = encoder.encode_text([text for _, text in data.take(rows)], convert_to_tensor=True)
            views = {"image": run.features, "text": torch.as_tensor(texts).float().cpu()}
        else:
            taken = data.take(rows)
            if len(taken) < 2:
                raise _NotApplicableError("there is one modality, nothing to align")
            views = {name: embed({name: features}) for name, features in taken.items()}
        scores = formulas.cross_modal_alignment(views)
        return scores.pop("recall_at_1"), {**scores, "items": len(rows)}

    def _info_preservation(self, _name: str, embed: Embedder, run: Run) -> Found:
        if embed.data.kind != "features":
            raise _NotApplicableError(f"an encoder of {embed.data.kind} has no features as input to be read back")
        if len(run.features) < LEAST_ITEMS:
            raise _NotApplicableError(f"expected at least {LEAST_ITEMS} samples, got {len(run.features)}")
        taken = embed.data.take(list(range(len(run.features))))
        sequences = {name: torch.as_tensor(one).float() for name, one in taken.items()}
        sources = {name: one.reshape(len(one), -1, one.shape[-1]).mean(dim=1) for name, one in sequences.items()}
        scores = formulas.information_preservation(run.features, sources)
        return sum(scores.values()) / len(scores), scores


def _of_classes_with_two(features: Tensor, labels: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Of the items that were encoded, those whose class has at least two: the others can have no right neighbour."""
    own = list(labels[: len(features)])
    rows = [row for row, label in enumerate(own) if own.count(label) > 1]
    return features[rows], [own[row] for row in rows]
