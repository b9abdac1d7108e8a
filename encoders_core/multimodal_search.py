"""MultimodalSearchEncoder: texts and pictures in one space, fitted where need be, and search over documents of both."""

import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, get_args

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.encoder import Encoder, Vectors, as_output
from encoders_core.errors import InputError, OptionError, WeightsError
from encoders_core.images import is_single
from encoders_core.options import refuse_unknown
from encoders_core.search.alignment import AlignmentHeads, FitOptions, FitReport, fit_heads
from encoders_core.search.bridge import ClassNameBridge
from encoders_core.search.index import Backend, Payload, SearchHit, VectorIndex
from encoders_core.text_encoder import TextEncoder
from encoders_core.vision_encoder import VisionEncoder
from encoders_core.weights.files import load_strictly, read_json, read_tensors, write_tensors

logger = logging.getLogger(__name__)

SearchFusion = Literal["contrastive_learning", "none"]

_MODEL_TYPE: Final = "camvec_search"
_TEXT_WORDS: Final = (
    *("batch_size", "show_progress_bar", "convert_to_numpy", "convert_to_tensor"),
    *("truncate_dim", "prompt", "normalize_embeddings"),
)


class MultimodalSearchEncoder(Encoder):
    """Texts and pictures -> unit vectors of `embedding_space_dim` that can be compared, and an index over documents.

    `fusion_method` "contrastive_learning" puts a linear head behind each encoder, which `fit` aligns with the loss of CLIP
    (https://arxiv.org/abs/2103.00020); "none" takes the
    encoders as they are, and their widths must be equal. `aligned` says whether a text and a picture can be compared:
    after `fit`, for CLIP and SigLIP through `from_pretrained(name)`, and for the offline default, MiniLM with the
    `ClassNameBridge` over ImageNet's class names, within the limits of that bridge.
    """

    modalities: ClassVar[tuple[str, ...]] = ("text", "image")
    heads: AlignmentHeads | None

    def __init__(
        self,
        vision_encoder: VisionEncoder | ClassNameBridge | None = None,
        text_encoder: TextEncoder | None = None,
        fusion_method: SearchFusion = "contrastive_learning",
        embedding_space_dim: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if fusion_method not in get_args(SearchFusion):
            raise OptionError(
                f"fusion_method: expected one of {', '.join(get_args(SearchFusion))}, got {fusion_method!r}"
            )
        self.text_encoder = text_encoder or TextEncoder.from_pretrained()
        self.vision_encoder = vision_encoder or ClassNameBridge(self.text_encoder)
        self.fusion_method: SearchFusion = fusion_method
        widths = (self.vision_encoder.output_dim, self.text_encoder.output_dim)
        self.embedding_space_dim = _space_dim(embedding_space_dim, widths, fusion_method)
        self.heads = None
        if fusion_method == "contrastive_learning":
            self.heads = AlignmentHeads(*widths, self.embedding_space_dim, seed=seed)
        self.trained = self.vision_encoder.trained and self.text_encoder.trained
        self.aligned = isinstance(self.vision_encoder, ClassNameBridge) and self.trained
        self.index: VectorIndex | None = None
        self._hashed: tuple[tuple[int, ...], str] = ((), "")
        self.to(self.text_encoder.device)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        show_progress_bar: bool = True,
    ) -> Self:
        """Both towers of CLIP or SigLIP from a directory or a hub id, or what `save_pretrained` wrote.

        Raises WeightsNotFoundError, WeightsError, and OptionError when the towers were not trained with each other.
        """
        if read_json(Path(source) / "config.json").get("model_type") == _MODEL_TYPE:
            return cls._from_own(Path(source)).to(device=device)
        where: dict[str, Any] = {
            "revision": revision,
            "local_files_only": local_files_only,
            "show_progress_bar": show_progress_bar,
        }
        text = TextEncoder.from_pretrained(source, **where)
        if text.logit_scale is None:
            raise OptionError(f"{source}: its text tower was not trained with pictures; name a CLIP or SigLIP model")
        encoder = cls(VisionEncoder.from_pretrained(source, **where), text)
        encoder.aligned = True
        return encoder.to(device=device)

    @classmethod
    def _from_own(cls, folder: Path) -> Self:
        config = read_json(folder / "config.json")
        text = TextEncoder.from_pretrained(folder / "text")
        vision: VisionEncoder | ClassNameBridge
        if config["top_classes"] is not None:
            vectors = read_tensors(folder / "class_vectors.safetensors")["class_vectors"]
            vision = ClassNameBridge(text, top_classes=config["top_classes"], class_vectors=vectors)
        else:
            vision = VisionEncoder.from_pretrained(folder / "vision")
        encoder = cls(vision, text, config["fusion_method"], config["embedding_space_dim"])
        if encoder.heads is not None:
            tensors = read_tensors(folder / "model.safetensors")
            load_strictly(encoder.heads, tensors, source=str(folder), family="alignment heads", dtype=torch.float32)
        encoder.aligned = config["aligned"]
        return encoder

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write heads and encoders for `from_pretrained`; the index is saved by itself, `index.save`."""
        folder, vision = Path(directory), self.vision_encoder
        folder.mkdir(parents=True, exist_ok=True)
        self.text_encoder.save_pretrained(folder / "text")
        if isinstance(vision, ClassNameBridge):
            write_tensors({"class_vectors": vision.class_vectors}, folder / "class_vectors.safetensors")
        else:
            vision.save_pretrained(folder / "vision")
        if self.heads is not None:
            write_tensors(self.heads.state_dict(), folder / "model.safetensors")
        config = {
            "model_type": _MODEL_TYPE,
            "fusion_method": self.fusion_method,
            "embedding_space_dim": self.embedding_space_dim,
            "aligned": self.aligned,
            "top_classes": vision.top_classes if isinstance(vision, ClassNameBridge) else None,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @property
    def output_dim(self) -> int:
        """Width of the common space."""
        return self.embedding_space_dim

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over everything that vectors depend on; an index remembers those it was made with."""
        vision = self.vision_encoder
        manners = (self.fusion_method, self.text_encoder.config, vision.transform, *vision.manners)
        more = vision.top_classes if isinstance(vision, ClassNameBridge) else vision.config
        return hashlib.sha256(f"{manners} {more} {self._weights_hash()}".encode()).hexdigest()[:16]

    def _weights_hash(self) -> str:
        """Of all weights; computed anew when one was replaced or written to, which torch counts."""
        tensors = self.state_dict(keep_vars=True)
        seen = tuple(n for t in tensors.values() for n in (t.data_ptr(), t._version))  # noqa: SLF001  torch's own count
        if self._hashed[0] != seen:
            self._hashed = (seen, _hash(tensors))
        return self._hashed[1]

    def encode_image(self, images: Any, *, normalize_embeddings: bool = True, **options: Any) -> Vectors:
        """Pictures -> vectors in the common space, of unit length unless asked otherwise.

        `options` as in `VisionEncoder.encode_image`. Raises InputError, OptionError.
        """
        found = self.vision_encoder.encode_image(images, **_as_tensor(options))
        head = None if self.heads is None else self.heads.image
        return _finish(found, head, options, single=is_single(images), normalize=normalize_embeddings)

    def encode_text(self, texts: str | Sequence[str], *, normalize_embeddings: bool = True, **options: Any) -> Vectors:
        """Texts -> vectors in the common space, of unit length unless asked otherwise.

        `options` as in `TextEncoder.encode_text`. Raises InputError, OptionError.
        """
        refuse_unknown(options, _TEXT_WORDS, "encode_text")
        found: Any = self.text_encoder.encode_text(texts, **_as_tensor(options))
        head = None if self.heads is None else self.heads.text
        return _finish(found, head, options, single=isinstance(texts, str), normalize=normalize_embeddings)

    def fit(self, pairs: Iterable[Any], *, show_progress_bar: bool | None = None, **options: Any) -> FitReport:
        """Align the heads on (text, picture) pairs, or documents with both, with InfoNCE; the encoders stay as they are.

        `options` are those of `FitOptions`: epochs, batch_size, learning_rate, weight_decay, validation_share, patience,
        seed. It stops when the held-out loss no longer falls, and keeps the best heads. An index made before is of
        another model afterwards. The same pairs and seed give the same heads. Raises InputError, OptionError.
        """
        if self.heads is None:
            raise OptionError("fusion_method 'none' has nothing to fit; construct with 'contrastive_learning'")
        refuse_unknown(options, [field.name for field in dataclasses.fields(FitOptions)], "fit")
        chosen = FitOptions(**options)
        texts, images = _pairs(pairs)
        bar: dict[str, Any] = {
            "convert_to_tensor": True,
            "normalize_embeddings": True,
            "show_progress_bar": show_progress_bar,
        }
        groups = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        report = fit_heads(
            self.heads,
            torch.as_tensor(self.vision_encoder.encode_image(images, **bar)),
            torch.as_tensor(self.text_encoder.encode_text(texts, **bar)),
            [groups[text] for text in texts],
            chosen,
            show_progress_bar=show_progress_bar,
        )
        self.aligned = self.aligned or report.best_epoch > 0
        return report

    def create_search_index(
        self,
        documents: Sequence[Payload],
        *,
        backend: Backend = "exact",
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> VectorIndex:
        """Documents, each with "text", "image" (path, PIL, array, tensor) or both, -> an index, kept for `search`, too.

        A document with both gets the direction halfway between. Whatever else it holds comes back with the hit; its
        "id" is used where given, else its place. Raises InputError that names documents with neither, with missing
        files or with pictures that cannot be read.
        """
        documents = list(documents)
        _check_documents(documents)
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        vectors = torch.zeros(len(documents), self.output_dim, device=self.device)
        for key, encode in (("text", self.encode_text), ("image", self.encode_image)):
            rows = [row for row, document in enumerate(documents) if _has(document, key)]
            if rows:
                values = [documents[row][key] for row in rows]
                vectors[rows] += torch.as_tensor(encode(values, convert_to_tensor=True, **options))
        if not self.aligned and any(_has(document, "image") for document in documents):
            logger.warning("texts and pictures are not aligned: fit the encoder, or name a model trained on both")
        index = VectorIndex(self.output_dim, model=self.fingerprint, backend=backend)
        ids = [document.get("id", row) for row, document in enumerate(documents)]
        index.add(ids, vectors, [dict(document) for document in documents])
        self.index = index
        return index

    def load_search_index(self, directory: str | os.PathLike[str], *, backend: Backend = "exact") -> VectorIndex:
        """An index that was saved, kept for `search`, too. Raises WeightsError when another model made it."""
        self.index = VectorIndex.load(directory, model=self.fingerprint, backend=backend)
        return self.index

    def search(
        self,
        text_query: str | None = None,
        image_query: Any = None,
        top_k: int = 10,
        fusion_weight_text: float = 0.5,
        fusion_weight_image: float = 0.5,
        *,
        index: VectorIndex | None = None,
    ) -> list[SearchHit]:
        """A text, a picture or both -> up to `top_k` hits, best first, with `score`, `text` and `document`.

        The score is the mean of the cosines of both queries with the document, weighted by the fusion weights; a weight
        of 0 leaves a query out, and one query alone counts whole. `index` is the last one made or loaded unless given.
        Raises InputError, OptionError, and WeightsError when another model made the index.
        """
        index = self.index if index is None else index
        if index is None:
            raise InputError("there is no index to search: call create_search_index(documents) first")
        if index.model != self.fingerprint:
            raise WeightsError(
                f"the index is of model {index.model!r}, the encoder is {self.fingerprint!r} now (fitted, or changed): "
                "index the documents again"
            )
        query = self._query(text_query, image_query, fusion_weight_text, fusion_weight_image)
        return index.search(query, top_k)

    def _query(self, text: str | None, image: Any, text_weight: float, image_weight: float) -> Tensor:
        weights = {"text": text_weight, "image": image_weight}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise OptionError(f"fusion_weight_{name}: expected a number of at least 0, got {weight}")
        if image is not None and not is_single(image) and len(image) != 1:
            raise InputError(f"image_query: expected one picture, got {len(image)}")
        total = text_weight * (text is not None) + image_weight * (image is not None)
        if total <= 0:
            raise InputError("expected text_query, image_query or both, with a fusion weight above 0; got none")
        query = torch.zeros(self.output_dim, device=self.device)
        if text is not None and text_weight:
            query += text_weight / total * torch.as_tensor(self.encode_text(text, convert_to_tensor=True))
        if image is not None and image_weight:
            found = torch.as_tensor(self.encode_image(image, convert_to_tensor=True))
            query += image_weight / total * found.reshape(-1)
        return query


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _space_dim(asked: int | None, widths: tuple[int, int], fusion: SearchFusion) -> int:
    """The width of the common space. Raises OptionError where it cannot be had."""
    image, text = widths
    if fusion == "none" and not (image == text == (asked or text)):
        raise OptionError(
            f"fusion_method 'none' wants one width, got {image} for pictures, {text} for texts"
            + (f" and embedding_space_dim {asked}" if asked else "")
            + "; use 'contrastive_learning'"
        )
    dim = max(widths) if asked is None else asked
    if dim < 1:
        raise OptionError(f"embedding_space_dim: expected a positive number, got {dim}")
    return dim


def _as_tensor(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` for an encoder whose vectors are to pass through a head."""
    out = {key: value for key, value in options.items() if key not in ("convert_to_numpy", "truncate_dim")}
    return out | {"convert_to_tensor": True}


def _finish(
    found: Any, head: nn.Linear | None, options: Mapping[str, Any], *, single: bool, normalize: bool
) -> Vectors:
    vectors = torch.as_tensor(found)
    vectors = vectors[None] if single else vectors
    with torch.no_grad():
        vectors = vectors if head is None else head(F.normalize(vectors, dim=-1))
    return as_output(
        vectors,
        single=single,
        convert_to_numpy=options.get("convert_to_numpy", True),
        convert_to_tensor=options.get("convert_to_tensor", False),
        normalize_embeddings=normalize,
        truncate_dim=options.get("truncate_dim"),
    )


def _has(document: Payload, key: str) -> bool:
    value = document.get(key)
    return value is not None and not (isinstance(value, str) and not value.strip())


def _check_documents(documents: Sequence[Any]) -> None:
    """Everything that can be said before any work: all missing files in one message."""
    for row, document in enumerate(documents):
        if not isinstance(document, Mapping):
            raise InputError(f"document {row}: expected a dictionary, got {type(document).__name__}")
        if not _has(document, "text") and not _has(document, "image"):
            raise InputError(f"document {row}: expected a 'text', an 'image' or both, got keys {sorted(document)}")
        if _has(document, "text") and not isinstance(document["text"], str):
            raise InputError(f"document {row}: expected 'text' to be a string, got {type(document['text']).__name__}")
        if _has(document, "image") and not is_single(document["image"]):
            raise InputError(f"document {row}: expected 'image' to be one picture, got a batch")
    missing = [
        f"document {row}: {os.fspath(document['image'])!r}"
        for row, document in enumerate(documents)
        if isinstance(document.get("image"), str | os.PathLike)
        and _has(document, "image")
        and not Path(document["image"]).is_file()
    ]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise InputError(f"no such picture file: {', '.join(missing[:10])}{more}")


def _pairs(pairs: Iterable[Any]) -> tuple[list[str], list[Any]]:
    """Texts and pictures of (text, picture) tuples or of documents with both."""
    documents = [
        pair if isinstance(pair, Mapping) else dict(zip(("text", "image"), pair, strict=True)) for pair in pairs
    ]
    _check_documents(documents)
    for row, document in enumerate(documents):
        lacking = [key for key in ("text", "image") if not _has(document, key)]
        if lacking:
            raise InputError(f"pair {row}: expected a 'text' and an 'image', got no {lacking[0]!r}")
    return [document["text"] for document in documents], [document["image"] for document in documents]
