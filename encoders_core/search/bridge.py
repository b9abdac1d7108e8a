"""A bridge from pictures to texts over the names of classes, for when no model was trained on both.

ConSE (Norouzi et al., https://arxiv.org/abs/1312.5650): the text vectors of the ten likeliest ImageNet classes, weighted
by their probabilities. It knows what those 1000 classes know: objects and animals, not what is done with them, no
colours or counts, and of people hardly more than what they wear or ride.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from numpy.typing import NDArray
from torch import Tensor

from encoders_core.data.imagenet_classes import imagenet_class_kinds, imagenet_class_names
from encoders_core.encoder import Encoder, Vectors, as_output
from encoders_core.errors import InputError, OptionError
from encoders_core.image_transform import ImageTransform
from encoders_core.images import ChannelOrder, as_batch, is_single, load_images
from encoders_core.models.efficientnet_lite import FEATURES, EfficientNetLite
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.frame_encoder import fingerprint
from encoders_core.text_encoder import TextEncoder
from encoders_core.weights.packaged import EFFICIENTNET_LITE0, load_packaged

_INPUT: Final = InputSpec((224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


class ClassGuess(NamedTuple):
    """A class, and how likely it is what the picture shows."""

    name: str
    probability: float


class ClassNameBridge(Encoder):
    """Pictures, or published EfficientNet-Lite0 vectors, -> vectors in the space of a text encoder.

    `text_encoder` is any with trained weights; by default the offline MiniLM. The squashed 224 px input is that of the
    camera pipeline, so that a picture and its published vector give nearly the same. `class_vectors` (1000, D), unit length,
    spare the encoding of the class names, which takes seconds. Raises WeightsNotFoundError.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    class_vectors: Tensor

    def __init__(
        self,
        text_encoder: TextEncoder | None = None,
        *,
        top_classes: int = 10,
        class_vectors: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_classes <= 1000:
            raise OptionError(f"top_classes: expected 1 to 1000, got {top_classes}")
        text_encoder = text_encoder or TextEncoder.from_pretrained()
        self.top_classes, self.trained = top_classes, text_encoder.trained
        self.network = EfficientNetLite()
        weights = load_packaged(EFFICIENTNET_LITE0)
        self.network.load_state_dict(weights)
        self.fingerprint = fingerprint(weights, _INPUT, pooling="mean", head="none", variant="float32")
        self.transform = ImageTransform(size_hw=_INPUT.size_hw, interpolation="area", mean=_INPUT.mean, std=_INPUT.std)
        if class_vectors is None:
            found = text_encoder.encode_text(class_texts(), 128, convert_to_tensor=True, normalize_embeddings=True)
            class_vectors = torch.as_tensor(found)
        elif class_vectors.shape != (1000, text_encoder.output_dim):
            raise InputError(
                f"class_vectors: expected (1000, {text_encoder.output_dim}), got {tuple(class_vectors.shape)}"
            )
        self.register_buffer("class_vectors", class_vectors.to(self.device))
        self.requires_grad_(requires_grad=False).eval()

    @property
    def output_dim(self) -> int:
        """Width of the text encoder's vectors."""
        return int(self.class_vectors.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224) normalised -> (B, output_dim), not of unit length: the surer, the longer."""
        return self.from_logits(self.network(x))

    def from_logits(self, logits: Tensor) -> Tensor:
        """(B, 1000) ImageNet logits -> (B, output_dim)."""
        weights, classes = logits.softmax(dim=-1).topk(self.top_classes, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return (weights[:, :, None] * self.class_vectors[classes]).sum(dim=1)

    def encode_image(
        self,
        images: Any,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Vectors:
        """Pictures (see `load_images`) -> vectors in text space, with the conventions of `VisionEncoder.encode_image`."""

        def embed(batch: list[Any]) -> Tensor:
            return self.forward(self._preprocess(batch, channel_order))

        vectors = self.embed_all(as_batch(images), embed, batch_size=batch_size, show_progress_bar=show_progress_bar)
        return as_output(
            vectors,
            single=is_single(images),
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )

    def from_published(self, vectors: Any, norms: Any, *, fingerprint: str | None = None) -> NDArray[np.float32]:
        """Published unit vectors (N, 1280) and norms (N,) -> (N, output_dim) float32 of unit length, in text space.

        One vector and one norm give (output_dim,). With the `fingerprint` of the model that published them, vectors of
        another model are refused (InputError), as are wrong shapes.
        """
        with torch.no_grad():
            bridged = F.normalize(
                self.from_logits(self.published_logits(vectors, norms, fingerprint=fingerprint)), dim=-1
            )
        array: NDArray[np.float32] = bridged.cpu().numpy()
        return array[0] if np.ndim(vectors) == 1 else array

    def published_logits(self, vectors: Any, norms: Any, *, fingerprint: str | None = None) -> Tensor:
        """Published unit vectors (N, 1280) and norms (N,) -> (N, 1000) ImageNet logits, see `from_published`."""
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise InputError(
                f"these vectors are of model {fingerprint!r}; the bridge reads those of EfficientNet-Lite0, "
                f"{self.fingerprint!r}"
            )
        directions = torch.from_numpy(np.atleast_2d(np.asarray(vectors, np.float32)))
        lengths = torch.from_numpy(np.atleast_1d(np.asarray(norms, np.float32)))
        if directions.ndim != 2 or directions.shape[1] != FEATURES or lengths.shape != directions.shape[:1]:
            raise InputError(
                f"expected unit vectors (N, {FEATURES}) and norms (N,), "
                f"got {tuple(directions.shape)} and {tuple(lengths.shape)}"
            )
        features = F.normalize(directions, dim=-1) * lengths[:, None]
        with torch.no_grad():
            logits: Tensor = self.network._fc(features.to(self.device))  # noqa: SLF001  the published name of the layer
        return logits

    def guess_classes(self, images: Any, *, k: int = 5, channel_order: ChannelOrder = "rgb") -> list[list[ClassGuess]]:
        """For each picture the `k` likeliest of the 1000 classes, likeliest first."""
        with self.inference():
            return name_classes(self.network(self._preprocess(as_batch(images), channel_order)), k=k)

    def _preprocess(self, batch: Sequence[Any], channel_order: ChannelOrder) -> Tensor:
        pictures = load_images(list(batch), channel_order=channel_order)
        for picture in pictures:
            if picture.dtype != torch.uint8:
                raise InputError("the bridge wants pictures of uint8 pixels, got floats")
        return self.transform(pictures).to(self.device, self.dtype)


def class_texts() -> list[str]:
    """What stands for each of the 1000 classes: its name, and the everyday word for what it is where that says more."""
    pairs = zip(imagenet_class_names(), imagenet_class_kinds(), strict=True)
    return [f"{name}, a kind of {kind}" if kind else name for name, kind in pairs]


def name_classes(logits: Tensor, *, k: int = 5) -> list[list[ClassGuess]]:
    """(N, 1000) ImageNet logits -> for each row its `k` likeliest classes, likeliest first."""
    names = imagenet_class_names()
    probabilities, classes = logits.softmax(dim=-1).topk(k, dim=-1)
    rows = zip(probabilities.tolist(), classes.tolist(), strict=True)
    return [[ClassGuess(names[c], p) for p, c in zip(*row, strict=True)] for row in rows]
