"""MedicalEncoder: pictures of medicine to vectors, from DICOM on, with regions and confidence."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor

from encoders_core.encoder import Vectors
from encoders_core.errors import InputError, OptionError
from encoders_core.image_transform import ImageTransform
from encoders_core.images import ChannelOrder, ValueRange
from encoders_core.medical.options import MedicalSettings
from encoders_core.medical.pictures import frames_of, is_single_picture
from encoders_core.medical.reading import Reading, read_frames, read_model_input
from encoders_core.medical.regions import Rollout, region_tensors
from encoders_core.medical.result import MedicalResult
from encoders_core.results import rollout_map
from encoders_core.vision_encoder import Prepared, VisionEncoder, shifted
from encoders_core.weights.files import read_json

_FILE: Final = "medical_imaging.json"


class MedicalEncoder(VisionEncoder):
    """A VisionEncoder for pictures of medicine; made by `VisionEncoder.create_specialized("medical_imaging", config)`.

    It reads DICOM (extra `[medical]`), deep grey and volumes, see `medical.pictures.frames_of`, keeps their depth up to
    the model, and shows the whole picture in its proportions. It was trained on nothing by itself: give `source`, and
    take no decision about a patient from what it says. Errors name a picture by its place, never by its path.

    `preprocessing`: window_level_adjustment (True) shows the file's own window or VOI table, False and files without
    one the range of the picture's values; MONOCHROME1 is inverted. noise_reduction (None), "bilateral_filter".
    normalize_method ("z_score") over each picture, in place of the model's mean and deviation; "min_max" and "none" keep
    those. `architecture`: attention_to_detail reads pictures at twice the model's size, so that patches are half as wide
    (4 times as many, and the time with them); multi_scale_features makes the feature the mean of the unit features
    at the whole and at half the size (https://arxiv.org/abs/1711.02512); region_of_interest_detection fills `regions`
    from the attention rollout (https://arxiv.org/abs/2005.00928). `output`: preserve_spatial_info fills
    `patch_features`; confidence_estimation fills `confidence` by test-time augmentation
    (https://arxiv.org/abs/1807.07356): the mean cosine, at least 0, between the picture's feature and those of four
    views, moved by half a patch both ways and with a tenth less and more contrast.
    """

    READING: ClassVar[tuple[str, ...]] = ("channel_order", "value_range", "enhance_contrast", "window")
    settings: MedicalSettings

    def __init__(self, config: Mapping[str, Any] | None = None, **options: Any) -> None:
        settings = MedicalSettings.from_config(config or {})
        super().__init__(**options)
        self.settings, self.transform = settings, _whole(self.transform)

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, config: Mapping[str, Any] | None = None, **options: Any
    ) -> Self:
        """As `VisionEncoder.from_pretrained`; of a saved MedicalEncoder with its settings, unless `config` gives others."""
        encoder = super().from_pretrained(source, **options)
        own = read_json(Path(source) / _FILE)
        encoder.settings = MedicalSettings.from_config(own if config is None else config)
        if not own:
            encoder.transform = _whole(encoder.transform)
        return encoder

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write what VisionEncoder writes, and `medical_imaging.json`."""
        super().save_pretrained(directory)
        (Path(directory) / _FILE).write_text(json.dumps(self.settings.to_config(), indent=2) + "\n", "utf-8")

    @property
    def manners(self) -> tuple[Any, ...]:
        """The settings."""
        return (self.settings,)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) model input -> (B, output_dim); with multi_scale_features the mean over scales."""
        features: Tensor = self.model(x)
        return self._scales(x, features).mean(dim=1) if self.settings.multi_scale_features else features

    def encode(
        self,
        images: Any,
        normalize_output: bool = True,
        return_attention_weights: bool = False,
        *,
        enhance_contrast: bool = False,
        return_attention_maps: bool = False,
        window: tuple[float, float] | None = None,
        return_patch_features: bool = False,
        return_confidence: bool = False,
        batch_size: int = 8,
        channel_order: ChannelOrder = "rgb",
        value_range: ValueRange = "auto",
    ) -> MedicalResult:
        """Pictures (see `frames_of`) -> features (B, output_dim) float32, one row a frame, of unit length by default.

        `enhance_contrast`: CLAHE. `return_attention_maps`: the attention rollout on the grid of patches. `window`:
        (center, width) in the picture's units, instead of its own. `value_range="normalized"` takes floats (B, C, H, W)
        as model input, "auto" all numbers as measured values. Raises InputError, OptionError.
        """
        reading: dict[str, Any] = {"channel_order": channel_order, "value_range": value_range}
        reading |= {"enhance_contrast": enhance_contrast, "window": window}
        items = self.items(images)
        spatial = return_patch_features or self.settings.preserve_spatial_info
        confident = return_confidence or self.settings.confidence_estimation

        def encode_rows(rows: slice) -> MedicalResult:
            prepared = self.prepare(items[rows], **reading)
            part = self._encode_frames(
                prepared, weights=return_attention_weights, maps=return_attention_maps, patches=spatial
            )
            features = part.features
            return dataclasses.replace(part, confidence=self.confidence(prepared.x, features) if confident else None)

        return self.encode_all(len(items), encode_rows, batch_size=batch_size, normalize=normalize_output)

    def encode_image(self, images: Any, *args: Any, **options: Any) -> Vectors:
        """As `VisionEncoder.encode_image`, with `enhance_contrast` and `window` beside. Pictures must have one frame."""
        frames = frames_of(images)
        if several := next((frame for frame in frames if frame.index), None):
            raise InputError(
                f"encode_image gives one vector a picture, and picture {several.place + 1} has more than one frame: "
                "use encode"
            )
        one = len(frames) == 1 and is_single_picture(images)
        return super().encode_image(frames[0] if one else frames, *args, **options)

    def items(self, images: Any) -> list[Any] | Prepared:
        """The frames of all pictures."""
        return images if isinstance(images, Prepared) else list(frames_of(images))

    def prepare(self, images: Any, **reading: Any) -> Prepared:
        """Frames -> model input, with where each came from; the options in `READING` say how they are read."""
        if isinstance(images, Prepared):
            return images
        asked = Reading(**reading)
        asked.check(self.settings)
        frames = frames_of(images)
        if asked.value_range == "normalized":
            x, sources = read_model_input(frames, asked)
        elif frames and not self.enable_preprocessing:
            raise InputError("preprocessing is off: expected model input (B, C, H, W) and value_range='normalized'")
        else:
            x, sources = read_frames(frames, asked, self.settings, self.input_transform, self.config.in_chans)
        return Prepared(x.to(self.device, self.dtype), sources)

    def preprocess(
        self, images: Any, channel_order: ChannelOrder = "rgb", value_range: ValueRange = "auto", **reading: Any
    ) -> Tensor:
        """Pictures, see `frames_of` -> model input (B, C, H, W) on the device and in the dtype of the weights."""
        return self.prepare(images, channel_order=channel_order, value_range=value_range, **reading).x

    def views(self, x: Tensor) -> tuple[Tensor, ...]:
        """Moved by half a patch both ways, with less and with more contrast; left stays left, which means something."""
        step = max(1, self.config.patch_size // 2)
        return shifted(x, step), shifted(x, -step), x * 0.9, x * 1.1

    @property
    def input_transform(self) -> ImageTransform:
        """`transform`, at twice the size with attention_to_detail."""
        if not self.settings.attention_to_detail:
            return self.transform
        height, width = self.transform.size_hw
        resize_px = self.transform.resize_px and 2 * self.transform.resize_px
        return dataclasses.replace(self.transform, size_hw=(2 * height, 2 * width), resize_px=resize_px)

    def _scales(self, x: Tensor, features: Tensor) -> Tensor:
        """Features of x, and of x at half its size, of unit length: (B, 2, D)."""
        if features.ndim != 2:
            raise OptionError("multi_scale_features averages one vector a picture, but use_pooling is off")
        patch = self.config.patch_size
        half = [max(1, round(side / patch / 2)) * patch for side in x.shape[-2:]]
        smaller = F.interpolate(x.float(), size=half, mode="bilinear", antialias=True).to(x.dtype)
        return F.normalize(torch.stack((features, self.model(smaller)), dim=1), dim=-1)

    def _encode_frames(self, prepared: Prepared, *, weights: bool, maps: bool, patches: bool) -> MedicalResult:
        x, prefix, patch = prepared.x, self.config.prefix, self.config.patch_size
        grid_hw, finds = (x.shape[-2] // patch, x.shape[-1] // patch), self.settings.region_of_interest_detection
        seen = Rollout(keep=weights) if weights or maps or finds else None
        tokens = self.model.forward_features(x, seen)
        features = self.model.forward_head(tokens)
        scales = self._scales(x, features) if self.settings.multi_scale_features else None
        attention = None if seen is None else rollout_map(seen.rollout, grid_hw, prefix)
        sizes = [(source.size_hw, source.square_hw) for source in prepared.sources]
        found = None
        if finds and attention is not None:
            found = region_tensors(attention, patch, self._sizing(x), sizes)
        return MedicalResult(
            features=(features if scales is None else scales.mean(dim=1)).float(),
            attention_weights=torch.stack(seen, dim=1).float() if weights and seen is not None else None,
            attention_maps=attention if maps else None,
            patch_features=tokens[:, prefix:].reshape(-1, *grid_hw, self.embed_dim).float() if patches else None,
            scale_features=None if scales is None else scales.float(),
            region_boxes=None if found is None else found[0],
            region_scores=None if found is None else found[1],
            picture_indices=torch.tensor([source.picture for source in prepared.sources], dtype=torch.int64),
            frame_indices=torch.tensor([source.frame for source in prepared.sources], dtype=torch.int64),
            grid_hw=grid_hw,
            prefix=prefix,
        )

    def _sizing(self, x: Tensor) -> ImageTransform:
        """How pictures became of the size of `x`: model input of another size is a picture as it is."""
        size_hw = (x.shape[-2], x.shape[-1])
        ours = self.input_transform
        return ours if ours.size_hw == size_hw else ImageTransform(size_hw=size_hw)


def _whole(transform: ImageTransform) -> ImageTransform:
    """Pictures whole and in their proportions: nothing is cut off at the edge."""
    return dataclasses.replace(transform, fit="letterbox", resize_px=None)
