"""VisionEncoder: pictures to vectors with a Vision Transformer, from scratch or from anybody's checkpoint."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.encoder import Encoder, Vectors, as_output, seeded
from encoders_core.errors import OptionError
from encoders_core.image_transform import ImageTransform
from encoders_core.images import ChannelOrder, ValueRange, as_batch, is_single, load_images
from encoders_core.models.eager_linear import lay_out
from encoders_core.models.positions import resize_positions
from encoders_core.models.vit import VisionTransformer, VitConfig
from encoders_core.options import check_options, refuse_unknown
from encoders_core.results import VisionResult
from encoders_core.vision_settings import ADVANCED_OPTIONS, advanced_changes
from encoders_core.weights.files import load_strictly
from encoders_core.weights.hub import locate
from encoders_core.weights.vision import VisionCheckpoint, open_vision, save_vision

if TYPE_CHECKING:
    from encoders_core.medical_encoder import MedicalEncoder

logger = logging.getLogger(__name__)

_ENCODE_IMAGE_WORDS: Final = (
    *("batch_size", "show_progress_bar", "convert_to_numpy", "convert_to_tensor", "normalize_embeddings"),
    *("truncate_dim", "channel_order", "value_range"),
)

_SPECIALIZATIONS: Final = ("medical_imaging",)


@dataclass(frozen=True)
class Prepared:
    """Pictures made ready: `x` (B, C, H, W) is model input, `sources` says of each where it came from, if that matters."""

    x: Tensor
    sources: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, rows: slice) -> "Prepared":
        return Prepared(self.x[rows], self.sources[rows])


class VisionEncoder(Encoder):
    """Pictures -> vectors of `output_dim`, with a Vision Transformer (https://arxiv.org/abs/2010.11929).

    Built by its constructor the weights are random (`trained` is False, and the log says so); `from_pretrained` brings
    trained ones. `seed` makes random weights repeatable and leaves the global generator untouched. As a module,
    `encoder(x)` takes normalised (B, C, H, W) and lets gradients through; it starts in evaluation mode.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    READING: ClassVar[tuple[str, ...]] = ("channel_order", "value_range")
    """Options of `encode` and `encode_image` that say how pictures are read."""
    model: VisionTransformer
    transform: ImageTransform
    """Preprocessing; replace it to change it."""
    enable_preprocessing: bool

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_layers: int = 12,
        hidden_dim: int = 768,
        num_heads: int = 12,
        output_dim: int | None = 512,
        enable_preprocessing: bool = True,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        act: str = "gelu",
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if output_dim is not None and output_dim < 1:
            raise OptionError(f"output_dim: expected a positive number, or None for no projection, got {output_dim}")
        size_hw = image_size if isinstance(image_size, tuple) else (image_size, image_size)
        config = VitConfig(
            img_size=size_hw,
            patch_size=patch_size,
            in_chans=in_channels,
            embed_dim=hidden_dim,
            depth=num_layers,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            act=act,
            num_classes=0 if output_dim in (None, hidden_dim) else output_dim or 0,
        )
        half = (0.5,) * in_channels
        transform = ImageTransform(size_hw=size_hw, mean=half, std=half)
        _furnish(self, seeded(lambda: VisionTransformer(config), seed), transform, enable_preprocessing, trained=False)
        self.to(device=device, dtype=dtype)
        logger.warning("VisionEncoder: the weights are random; its features mean nothing until trained or loaded")

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        image_size: int | tuple[int, int] | None = None,
        act: str | None = None,
        num_heads: int | None = None,
        enable_preprocessing: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        show_progress_bar: bool = True,
    ) -> Self:
        """An encoder with trained weights, in evaluation mode, from a directory, a weights file or a hub id `owner/name`.

        Understood are our own directories, timm (ViT, DeiT), transformers (ViT, DeiT, DINOv2, CLIP, SigLIP), OpenAI's
        and open_clip's CLIP. `image_size` resizes the positional table as the family does it. `act` and `num_heads` are
        for bare files, which do not tell them. Raises WeightsNotFoundError, WeightsError, OptionError.
        """
        path = locate(source, revision=revision, local_files_only=local_files_only, show_progress_bar=show_progress_bar)
        said = {"act": act, "num_heads": num_heads}
        found = open_vision(path, {key: value for key, value in said.items() if value is not None})
        if image_size is not None:
            found = _at_size(found, image_size if isinstance(image_size, tuple) else (image_size, image_size))
        with torch.device("meta"):
            model = VisionTransformer(found.config)
        load_strictly(model, found.tensors, source=found.source, family=found.family, dtype=dtype or torch.float32)
        encoder = cls.__new__(cls)
        nn.Module.__init__(encoder)
        _furnish(encoder, model, found.transform, enable_preprocessing, trained=found.trained)
        return encoder.to(device=device)

    @classmethod
    def create_specialized(
        cls,
        specialization: str,
        config: Mapping[str, Any] | None = None,
        *,
        source: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> "MedicalEncoder":
        """An encoder for pictures of one kind, "medical_imaging": see `MedicalEncoder` for what `config` knows.

        `source` names trained weights, and `options` are those of `from_pretrained`; without it they are those of the
        constructor, and the weights are random. Raises OptionError that names the valid words.
        """
        if specialization not in _SPECIALIZATIONS:
            raise OptionError(
                f"specialization: expected one of {', '.join(map(repr, _SPECIALIZATIONS))}, got {specialization!r}"
            )
        from encoders_core.medical_encoder import MedicalEncoder  # noqa: PLC0415  it imports this module

        if source is not None:
            return MedicalEncoder.from_pretrained(source, config=config, **options)
        return MedicalEncoder(config, **options)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json`, `preprocessor_config.json` and `model.safetensors`, for `from_pretrained`."""
        save_vision(Path(directory), self.config, self.transform, self.model.state_dict(), trained=self.trained)

    @property
    def config(self) -> VitConfig:
        """The network's shape and manners."""
        return self.model.config

    @property
    def output_dim(self) -> int:
        """Width of the features."""
        return self.model.config.output_dim

    @property
    def embed_dim(self) -> int:
        """Width of the tokens inside, and of `patch_features`."""
        return self.model.config.embed_dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, output_dim); raises InputError for sizes that are no whole patches."""
        features: Tensor = self.model(x)
        return features

    def encode(
        self,
        images: Any,
        normalize_output: bool = True,
        return_attention_weights: bool = False,
        *,
        return_patch_features: bool = False,
        return_confidence: bool = False,
        batch_size: int = 32,
        channel_order: ChannelOrder = "rgb",
        value_range: ValueRange = "auto",
    ) -> VisionResult:
        """Pictures -> features (B, output_dim) float32, of unit length with `normalize_output`; one picture is B = 1.

        `images`: see `load_images`; uint8 pictures of any sizes go through `transform`, floats are taken as normalised
        input of any size in whole patches (`value_range="unit"`: as pixels from 0 to 1). `return_confidence` costs three
        more passes: the mean cosine (at least 0) between the features of the picture and of its mirror image and two
        shifts by half a patch. Raises InputError for what is no picture.
        """
        items = self.items(images)

        def encode_rows(rows: slice) -> VisionResult:
            x = self.prepare(items[rows], channel_order=channel_order, value_range=value_range).x
            part = self._encode_batch(x, attention=return_attention_weights, patches=return_patch_features)
            return dataclasses.replace(
                part, confidence=self.confidence(x, part.features) if return_confidence else None
            )

        return self.encode_all(len(items), encode_rows, batch_size=batch_size, normalize=normalize_output)

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
        value_range: ValueRange = "auto",
        **reading: Any,
    ) -> Vectors:
        """Pictures -> vectors, with the conventions of sentence-transformers: numpy float32 unless asked otherwise.

        A list, or an array or tensor with a batch axis, gives (B, D); one picture gives (D,). `show_progress_bar=None`
        shows it on a terminal when there is more than one batch. Raises InputError, OptionError.
        """
        refuse_unknown(reading, dict.fromkeys((*_ENCODE_IMAGE_WORDS, *self.READING)), "encode_image")
        if self.config.pool == "none":
            raise OptionError("encode_image gives one vector a picture, but use_pooling is off: use encode")
        reading |= {"channel_order": channel_order, "value_range": value_range}
        vectors = self.embed_all(
            as_batch(images),
            lambda batch: self(self.preprocess(batch, **reading)),
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )
        return as_output(
            vectors,
            single=is_single(images),
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )

    def items(self, images: Any) -> "list[Any] | Prepared":
        """What `encode` counts: the pictures of a batch one by one, not yet loaded."""
        return images if isinstance(images, Prepared) else as_batch(images)

    def prepare(self, images: Any, **reading: Any) -> "Prepared":
        """Items -> model input, for `encode`; the options in `READING` say how they are read."""
        return images if isinstance(images, Prepared) else Prepared(self.preprocess(images, **reading))

    def preprocess(self, images: Any, channel_order: ChannelOrder = "rgb", value_range: ValueRange = "auto") -> Tensor:
        """Pictures, see `load_images` -> normalised (B, C, H, W) on the device and in the dtype of the weights."""
        channels = self.config.in_chans
        pictures = load_images(images, channels=channels, channel_order=channel_order, value_range=value_range)
        batch = self.transform.model_input(pictures, enabled=self.enable_preprocessing)
        return batch.to(self.device, self.dtype)

    def configure_advanced_settings(self, config: Mapping[str, Any]) -> None:
        """Change the network in place; sections and keys that are not named stay as they are.

        `patch_embedding`: learnable_position, sinusoidal_position (both: a table that starts as the sinusoid; neither:
        no positions), patch_dropout. `transformer_blocks`: attention_dropout, feedforward_dropout, pre_layer_norm.
        `output_projection`: use_pooling, pooling_type, final_activation. Dropouts act in training mode only. Raises
        OptionError that names the valid ones, before anything is changed.
        """
        options = check_options(config, ADVANCED_OPTIONS, "advanced settings")
        changes = advanced_changes(self.config, options)
        if self.trained and any(
            changes[key] != getattr(self.config, key) for key in ("position", "pre_layer_norm") if key in changes
        ):
            logger.warning("the weights were trained with other positions or another order of norms: train them again")
        self.model.reconfigure(**changes)

    def _encode_batch(self, x: Tensor, *, attention: bool, patches: bool) -> VisionResult:
        size = self.config.patch_size
        grid_hw, prefix = (x.shape[-2] // size, x.shape[-1] // size), self.config.prefix
        if not attention and not patches:
            return VisionResult(features=self.model(x).float(), grid_hw=grid_hw, prefix=prefix)
        layers: list[Tensor] | None = [] if attention else None
        tokens = self.model.forward_features(x, layers)
        return VisionResult(
            features=self.model.forward_head(tokens).float(),
            attention_weights=None if layers is None else torch.stack(layers, dim=1).float(),
            patch_features=tokens[:, prefix:].reshape(-1, *grid_hw, self.embed_dim).float() if patches else None,
            grid_hw=grid_hw,
            prefix=prefix,
        )

    def views(self, x: Tensor) -> tuple[Tensor, ...]:
        """Model input looked at in other ways, which should mean the same."""
        step = max(1, self.config.patch_size // 2)
        return x.flip(-1), shifted(x, step), shifted(x, -step)

    def confidence(self, x: Tensor, features: Tensor) -> Tensor:
        """(B,) mean cosine, at least 0, between `features` of model input and those of its `views`."""
        cosines = [F.cosine_similarity(features, self(view).float(), dim=-1) for view in self.views(x)]
        agreement = torch.stack(cosines).mean(dim=0)
        return (agreement if agreement.ndim == 1 else agreement.mean(dim=1)).clamp(0.0, 1.0)


def _furnish(
    encoder: VisionEncoder,
    model: VisionTransformer,
    transform: ImageTransform,
    enable_preprocessing: bool,
    *,
    trained: bool,
) -> None:
    encoder.model, encoder.transform = model, transform
    encoder.enable_preprocessing, encoder.trained = enable_preprocessing, trained
    lay_out(encoder)
    encoder.eval()


def _at_size(found: VisionCheckpoint, size_hw: tuple[int, int]) -> VisionCheckpoint:
    """The checkpoint made ready for pictures of another size: table, configuration and preprocessing."""
    old, new = found.config, dataclasses.replace(found.config, img_size=size_hw)
    tensors, transform = dict(found.tensors), found.transform
    if "pos_embed" in tensors:
        prefix = 0 if old.no_embed_class else old.prefix
        table = tensors["pos_embed"].float()
        tensors["pos_embed"] = resize_positions(table, old.grid_hw, new.grid_hw, prefix, old.position_resize)
    resize_px = transform.resize_px and round(transform.resize_px * max(size_hw) / max(transform.size_hw))
    transform = dataclasses.replace(transform, size_hw=size_hw, resize_px=resize_px)
    return dataclasses.replace(found, config=new, transform=transform, tensors=tensors)


def shifted(x: Tensor, step: int) -> Tensor:
    """(B, C, H, W) moved down and right by `step` pixels (up and left when negative); the edge fills the gap."""
    before, after = max(step, 0), max(-step, 0)
    padded = F.pad(x, (before, after, before, after), mode="replicate")
    return padded[..., after : after + x.shape[-2], after : after + x.shape[-1]]
