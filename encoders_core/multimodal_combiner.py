"""MultimodalCombiner: features of several modalities, any of them missing, to one vector."""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.encoder import Encoder, seeded
from encoders_core.errors import InputError, OptionError, WeightsError
from encoders_core.models.fusion import FusionConfig, FusionMethod, FusionNetwork, Tensors
from encoders_core.options import Schema, check_options, refuse_unknown
from encoders_core.results import EncodingResult
from encoders_core.weights.files import find_weights, load_strictly, read_json, read_tensors, write_tensors

logger = logging.getLogger(__name__)

FUSION_OPTIONS: Final[Schema] = {
    "attention_fusion": {
        "num_attention_heads": int,
        "attention_dropout": float,
        "temperature": float,
        "learnable_temperature": bool,
    },
    "cross_modal_attention": {"enable": bool, "symmetric": bool, "residual_connections": bool},
    "output_processing": {"layer_norm": bool, "dropout": float, "final_projection": bool},
}
"""What `configure_fusion` knows."""

_CONFIG_NAMES: Final = {
    "num_attention_heads": "num_heads",
    "enable": "cross_attention",
    "residual_connections": "residual",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class FusionResult(EncodingResult):
    """Fused features of a batch, (B, output_dim)."""

    attention_scores: dict[str, Tensor] | None = None
    """Who looks at whom, where asked for: "text->image" is (B, heads, N_text, N_image), rows sum to 1, or are all 0 where
    the sample has no image. "fused->text", (B, heads, N_text), is the attention fusion itself; all its entries together
    sum to 1. Without any attention the dict is empty."""

    @property
    def combined(self) -> Tensor:
        """`features` under the name of what was done."""
        return self.features


class MultimodalCombiner(Encoder):
    """Features by modality, (B, dim) or sequences (B, N, dim) -> one vector of `output_dim`.

    `fusion_method`: "attention" (a learnt query over all tokens), "concat" (linear layer over the means side by side),
    "mlp" (two layers), "weighted_sum". The query is the attention pooling of https://arxiv.org/abs/1810.00825. With
    `enable_cross_attention` the modalities look at each other first (https://arxiv.org/abs/1906.00295). The weights
    are random (`trained` is False, and the log says so) until trained or loaded; set `trained` when you have trained it.
    `seed` makes them repeatable and leaves the global generator untouched. It starts in evaluation mode.
    """

    modalities: ClassVar[tuple[str, ...]] = ("features",)
    model: FusionNetwork

    def __init__(
        self,
        input_dimensions: Mapping[str, int],
        fusion_method: FusionMethod = "attention",
        output_dim: int = 512,
        *,
        enable_cross_attention: bool = True,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        config = FusionConfig(
            input_dimensions=dict(input_dimensions),
            method=fusion_method,
            output_dim=output_dim,
            cross_attention=enable_cross_attention,
            num_heads=math.gcd(8, output_dim),
        )
        self._seed, self.trained = seed, False
        self.model = seeded(lambda: FusionNetwork(config), seed)
        self.to(device=device, dtype=dtype)
        self.eval()
        logger.warning("MultimodalCombiner: the weights are random; its features mean nothing until trained or loaded")

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A combiner that `save_pretrained` wrote, in evaluation mode. Raises WeightsNotFoundError, WeightsError."""
        path = find_weights(Path(source))
        stored = read_json(Path(source) / "config.json")
        try:
            config = FusionConfig(**stored["fusion"])
        except (KeyError, TypeError, OptionError) as exc:
            raise WeightsError(f"{source}: config.json is not that of a MultimodalCombiner: {exc!r}") from exc
        combiner = cls.__new__(cls)
        nn.Module.__init__(combiner)
        combiner.model = FusionNetwork(config)
        tensors = read_tensors(path)
        load_strictly(combiner.model, tensors, source=str(path), family="a combiner", dtype=dtype or torch.float32)
        combiner._seed, combiner.trained = None, bool(stored.get("trained", False))  # noqa: SLF001  being built here
        return combiner.to(device=device).eval()

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors`, for `from_pretrained`."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.model.state_dict(), folder / "model.safetensors")
        config = {"model_type": "camvec_combiner", "trained": self.trained, "fusion": dataclasses.asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @property
    def config(self) -> FusionConfig:
        """The network's shape and manners."""
        return self.model.config

    @property
    def output_dim(self) -> int:
        """Width of the fused features."""
        return self.config.output_dim

    def combine(
        self,
        inputs: Mapping[str, Any],
        modality_weights: Mapping[str, float] | None = None,
        return_attention_scores: bool = False,
        *,
        masks: Mapping[str, Any] | None = None,
        normalize_output: bool = False,
    ) -> FusionResult:
        """Features by modality -> `FusionResult` with `combined` (B, output_dim), of unit length with `normalize_output`.

        Each input is a tensor, array or result, (B, dim) or (B, N, dim); a modality may be left out or None. `masks` are
        (B, N), or (B,) to say of which samples a modality is there, True where a token counts. `modality_weights` are
        shares, brought to sum 1 over what each sample has; a weight of 0 is as good as absent; without them the shares
        are equal. Gradients flow and dropout acts as for any module; `encode` is the same in evaluation mode without
        gradients. Raises InputError, OptionError.
        """
        tokens, all_masks, shares = self._prepare(inputs, modality_weights, masks)
        scores: dict[str, Tensor] | None = {} if return_attention_scores else None
        features = self.model(tokens, all_masks, shares, scores)
        if normalize_output:
            features = F.normalize(features, dim=-1)
        return FusionResult(features=features, attention_scores=scores)

    def encode(self, inputs: Mapping[str, Any], **options: Any) -> FusionResult:
        """`combine` in evaluation mode and without gradients, whatever mode the module is in."""
        with self.inference():
            return self.combine(inputs, **options)

    def forward(
        self,
        inputs: Mapping[str, Any],
        modality_weights: Mapping[str, float] | None = None,
        masks: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Features by modality, see `combine` -> (B, output_dim)."""
        fused: Tensor = self.model(*self._prepare(inputs, modality_weights, masks))
        return fused

    def configure_fusion(self, config: Mapping[str, Any]) -> None:
        """Change the fusion in place; sections and keys that are not named stay, and so do weights that still fit.

        `attention_fusion`, for all attention here, the fusion's and that between modalities: num_attention_heads,
        attention_dropout, temperature (the logits are divided by it), learnable_temperature. `cross_modal_attention`:
        enable, symmetric (else the modality named first looks at the later one), residual_connections.
        `output_processing`: layer_norm, dropout, final_projection. Dropouts act in training mode only. Parts switched on
        start at random. Raises OptionError that names the valid ones, before anything is changed.
        """
        options = check_options(config, FUSION_OPTIONS, "fusion")
        changes = {_CONFIG_NAMES.get(key, key): value for section in options.values() for key, value in section.items()}
        seeded(lambda: self.model.reconfigure(**changes), self._seed)
        if options.get("attention_fusion") and not self.config.attends:
            logger.warning(
                "attention_fusion has nothing to act on: the fusion is %r and cross-modal attention is off",
                self.config.method,
            )

    def _prepare(
        self,
        inputs: Mapping[str, Any],
        modality_weights: Mapping[str, float] | None,
        masks: Mapping[str, Any] | None,
    ) -> tuple[Tensors, Tensors, Tensor]:
        """What the network wants: tokens (B, N, dim) and masks (B, N) in the order of the config, shares (B, M)."""
        if not isinstance(inputs, Mapping):
            raise InputError(f"expected a dictionary of features by modality, got {type(inputs).__name__}")
        known = self.config.input_dimensions
        refuse_unknown(inputs, known, "inputs")
        refuse_unknown(masks or {}, known, "masks")
        tokens = {name: self._tokens(name, inputs[name]) for name in known if inputs.get(name) is not None}
        if not tokens:
            raise InputError(f"expected features of at least one of {', '.join(known)}, got none")
        sizes = {name: t.shape[0] for name, t in tokens.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"expected one batch size for all modalities, got {sizes}")
        all_masks = {name: self._mask(name, t, (masks or {}).get(name)) for name, t in tokens.items()}
        weights = self._weights(tokens, modality_weights)
        there = torch.stack([mask.any(dim=1) for mask in all_masks.values()], dim=1)
        shares = there * torch.tensor(weights, device=self.device)
        total = shares.sum(dim=1, keepdim=True)
        if masks and not bool((total > 0).all()):
            empty = int((total[:, 0] <= 0).nonzero()[0, 0])
            raise InputError(f"sample {empty} has no modality left: its masks and modality_weights leave out all")
        return tokens, all_masks, shares / total

    def _tokens(self, name: str, value: Any) -> Tensor:
        features = value.features if isinstance(value, EncodingResult) else torch.as_tensor(value)
        dim = self.config.input_dimensions[name]
        if features.ndim not in (2, 3) or features.shape[-1] != dim or 0 in features.shape[1:]:
            raise InputError(
                f"{name}: expected features (B, {dim}) or a sequence (B, N, {dim}), got {tuple(features.shape)}"
            )
        if not features.is_floating_point():
            raise InputError(f"{name}: expected floats, got {features.dtype}")
        features = features.to(self.device, self.dtype)
        return features[:, None] if features.ndim == 2 else features

    def _mask(self, name: str, tokens: Tensor, mask: Any) -> Tensor:
        if mask is None:
            return torch.ones(tokens.shape[:2], dtype=torch.bool, device=self.device)
        given = torch.as_tensor(mask).to(self.device)
        wanted = tuple(tokens.shape[:2])
        if given.ndim == 1:
            given = given[:, None].expand(-1, wanted[1])
        if tuple(given.shape) != wanted or (
            given.dtype != torch.bool and not bool(((given == 0) | (given == 1)).all())
        ):
            raise InputError(
                f"masks: {name}: expected (B, N) = {wanted} or (B,), True or 1 where a token counts, "
                f"got {tuple(torch.as_tensor(mask).shape)} of {given.dtype}"
            )
        return given.bool()

    def _weights(self, present: Tensors, given: Mapping[str, float] | None) -> list[float]:
        if given is None:
            return [1.0] * len(present)
        refuse_unknown(given, self.config.input_dimensions, "modality_weights")
        lacking = [name for name in present if name not in given]
        if lacking:
            raise OptionError(f"modality_weights: no weight for {', '.join(lacking)}; give one, 0 to leave it out")
        weights = [float(given[name]) for name in present]
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise OptionError(
                f"modality_weights: expected numbers of at least 0 and one above it, "
                f"got {dict(zip(present, weights, strict=True))}"
            )
        return weights
