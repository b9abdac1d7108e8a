"""VideoEncoder: clips to vectors, by an image model on every frame and a temporal model, or by a space-time transformer."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch import Tensor, nn

from encoders_core.encoder import Vectors, as_output, random_from
from encoders_core.errors import InputError, OptionError
from encoders_core.image_transform import ImageTransform
from encoders_core.images import ChannelOrder, ValueRange
from encoders_core.models.eager_linear import lay_out
from encoders_core.models.frame_tower import ClipTower, FrameTower
from encoders_core.models.vit import VisionTransformer, VitConfig
from encoders_core.options import refuse_unknown
from encoders_core.video.clips import ClipReading, as_clips, is_single, masks_of, read_clip, unit_pixels
from encoders_core.video.loading import OWN, VideoParts, open_parts
from encoders_core.video.motion import flow_motion
from encoders_core.video.network import ClipNetwork, temporal_model
from encoders_core.video.options import TemporalAggregation, changed, check_aggregation, frame_config
from encoders_core.video.result import VideoResult
from encoders_core.vision_encoder import VisionEncoder
from encoders_core.weights.files import load_strictly, write_tensors
from encoders_core.weights.hub import locate
from encoders_core.weights.video_layouts import read_model, write_config

if TYPE_CHECKING:
    from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder

logger = logging.getLogger(__name__)

_ENCODE_VIDEO_WORDS: Final = (
    *("batch_size", "show_progress_bar", "convert_to_numpy", "convert_to_tensor", "normalize_embeddings"),
    *("truncate_dim", "temporal_aggregation", "channel_order", "value_range", "source_fps"),
)


class VideoEncoder(ClipNetwork):
    """Clips -> vectors of `output_dim`.

    Built by its constructor it is a ViT on every frame, a temporal transformer over the frames, and a pooling over time,
    all random (`trained` is False, and the log says so; https://arxiv.org/abs/2103.15691 calls it a factorised encoder).
    `from_pretrained` and `from_image_encoder` bring trained frame
    features; a temporal model without trained weights then starts as the identity and the pooling as the mean, so that
    clips are encoded as the mean of their frames until it is trained. Clips longer than `max_frames` are sampled; `fps`
    is what clips that say their rate are brought to.
    """

    def __init__(
        self,
        *,
        max_frames: int = 64,
        frame_size: int | tuple[int, int] = 224,
        fps: float = 30,
        num_layers: int = 12,
        hidden_dim: int = 768,
        num_heads: int = 12,
        temporal_layers: int = 4,
        output_dim: int | None = 512,
        patch_size: int = 16,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        act: str = "gelu",
        enable_preprocessing: bool = True,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        frames = VitConfig(
            img_size=frame_size if isinstance(frame_size, tuple) else (frame_size, frame_size),
            patch_size=patch_size,
            in_chans=in_channels,
            embed_dim=hidden_dim,
            depth=num_layers,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            act=act,
        )
        half = (0.5,) * in_channels
        with random_from(seed):
            parts = VideoParts(
                tower=FrameTower(VisionTransformer(frames)),
                config=frame_config(max_frames, fps, temporal_layers, hidden_dim, num_heads),
                transform=ImageTransform(size_hw=frames.img_size, mean=half, std=half),
                output_dim=output_dim,
                trained=False,
            )
            self.furnish(parts, enable_preprocessing=enable_preprocessing, seed=seed)
        self.to(device=device, dtype=dtype)
        logger.warning("VideoEncoder: the weights are random; its features mean nothing until trained or loaded")

    @classmethod
    def from_image_encoder(
        cls,
        encoder: VisionEncoder,
        *,
        max_frames: int = 64,
        fps: float = 30,
        temporal_layers: int = 4,
        seed: int | None = None,
    ) -> Self:
        """An encoder of clips around an image encoder, whose weights it shares; features lie in the images' space.

        The temporal model is new: until it is trained, a clip's feature is the mean of its frames'.
        """
        if encoder.config.pool == "none":
            raise OptionError("expected an image encoder that gives one vector a picture; its use_pooling is off")
        parts = VideoParts(
            tower=FrameTower(encoder.model),
            config=frame_config(max_frames, fps, temporal_layers, encoder.output_dim, None),
            transform=encoder.transform,
            trained=encoder.trained,
        )
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        with random_from(seed):
            made.furnish(parts, enable_preprocessing=encoder.enable_preprocessing, seed=seed)
        if temporal_layers:
            logger.info("VideoEncoder: the temporal model is untrained; clips are encoded as the mean of their frames")
        return made.to(device=encoder.device, dtype=encoder.dtype)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        max_frames: int = 64,
        fps: float = 30,
        temporal_layers: int | None = None,
        enable_preprocessing: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        show_progress_bar: bool = True,
        **image_options: Any,
    ) -> Self:
        """An encoder with trained weights, in evaluation mode, from a directory, a weights file or a hub id `owner/name`.

        Understood are our own directories (which say `max_frames`, `fps` and the temporal model themselves), VideoMAE,
        ViViT and TimeSformer of transformers (which say `max_frames`, and have no temporal model on top unless
        `temporal_layers` asks for one), and every image checkpoint that VisionEncoder reads, for which `image_options`
        are its `image_size`, `act` and `num_heads`. Raises WeightsNotFoundError, WeightsError, OptionError.
        """
        path = locate(source, revision=revision, local_files_only=local_files_only, show_progress_bar=show_progress_bar)
        dtype = dtype or torch.float32
        parts = open_parts(path, read_model(path), fps=fps, temporal_layers=temporal_layers, dtype=dtype)
        if parts is None:
            refuse_unknown(image_options, ("image_size", "act", "num_heads"), "from_pretrained")
            images = VisionEncoder.from_pretrained(
                path, enable_preprocessing=enable_preprocessing, device=device, dtype=dtype, **image_options
            )
            layers = 4 if temporal_layers is None else temporal_layers
            return cls.from_image_encoder(images, max_frames=max_frames, fps=fps, temporal_layers=layers)
        refuse_unknown(image_options, (), "from_pretrained of a video checkpoint")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        with torch.device("meta" if parts.tensors else "cpu"):
            made.furnish(parts, enable_preprocessing=enable_preprocessing)
        if parts.tensors:
            load_strictly(made, parts.tensors, source=str(path), family="camvec video", dtype=dtype)
            lay_out(made)
        return made.to(device=device, dtype=dtype)

    @classmethod
    def create_realtime(
        cls, config: Mapping[str, Any] | None = None, buffer_size: int | None = None, **options: Any
    ) -> "RealtimeVideoEncoder":
        """An encoder of live streams with a latency budget; see `encoders_core.video.live.create_realtime`."""
        from encoders_core.video.live import create_realtime  # noqa: PLC0415  the realtime part is wanted only here

        return create_realtime(config, buffer_size, **options)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json`, `preprocessor_config.json` and `model.safetensors`, for `from_pretrained`."""
        model = self.tower.model.config
        kind = "frames" if isinstance(self.tower, FrameTower) else "clips"
        content = {
            "architecture": OWN,
            kind: dataclasses.asdict(model),
            "video": self.config.to_dict(),
            "output_dim": self.output_dim,
            "trained": self.trained,
        }
        write_config(Path(directory), content, self.transform)
        write_tensors(self.state_dict(), Path(directory) / "model.safetensors")

    def encode(
        self,
        videos: Any,
        temporal_aggregation: TemporalAggregation | None = None,
        normalize_output: bool = True,
        return_temporal_attention: bool = False,
        *,
        frame_mask: Any = None,
        return_frame_features: bool = False,
        return_layer_attention: bool = False,
        batch_size: int = 8,
        source_fps: float | None = None,
        channel_order: ChannelOrder = "rgb",
        value_range: ValueRange = "auto",
    ) -> VideoResult:
        """Clips -> features (B, output_dim) float32, of unit length with `normalize_output`; one clip is B = 1.

        `videos`: a tensor (B, T, C, H, W), an array (B, T, H, W, C), one clip of either, a video file, a list of pictures
        (one clip), {"array": ..., "video_metadata": {"fps": ...}}, or a list of clips, which may differ in length. uint8
        goes through `transform`; floats are taken as normalised input (`value_range="unit"`: pixels from 0 to 1).
        `frame_mask` (B, T), or one row a clip, is False for frames that do not count: they are left out before sampling.
        `temporal_aggregation`: "attention", "mean", "max", "lstm", or "cls_token" for towers with one; None is what was
        configured. `batch_size` counts clips. Raises InputError for what is no clip, OptionError.
        """
        clips = as_clips(videos)
        masks = masks_of(frame_mask, len(clips))
        how = self._reading(channel_order, value_range)
        if not clips:
            raise InputError("expected at least one clip, got none")

        def encode_rows(rows: slice) -> VideoResult:
            pairs = zip(clips[rows], masks[rows], strict=True)
            read = [read_clip(clip, how, mask=mask, source_fps=source_fps) for clip, mask in pairs]
            part = self.encode_clips(
                read, temporal_aggregation, attention=return_temporal_attention, layers=return_layer_attention
            )
            return part if return_frame_features else dataclasses.replace(part, frame_features=None)

        return self.encode_all(len(clips), encode_rows, batch_size=batch_size, normalize=normalize_output)

    def encode_video(
        self,
        videos: Any,
        batch_size: int = 8,
        show_progress_bar: bool | None = None,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        temporal_aggregation: TemporalAggregation | None = None,
        source_fps: float | None = None,
        channel_order: ChannelOrder = "rgb",
        value_range: ValueRange = "auto",
        **unknown: object,
    ) -> Vectors:
        """Clips -> vectors, with the conventions of sentence-transformers: numpy float32 unless asked otherwise.

        One clip gives (D,), a list of clips or a batch (B, D). Raises InputError, OptionError.
        """
        refuse_unknown(unknown, _ENCODE_VIDEO_WORDS, "encode_video")
        how = self._reading(channel_order, value_range)

        def embed(batch: list[Any]) -> Tensor:
            read = [read_clip(clip, how, source_fps=source_fps) for clip in batch]
            return self.encode_clips(read, temporal_aggregation).features

        vectors = self.embed_all(as_clips(videos), embed, batch_size=batch_size, show_progress_bar=show_progress_bar)
        return as_output(
            vectors,
            single=is_single(videos),
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )

    def configure_temporal_processing(self, config: Mapping[str, Any]) -> None:
        """Change the temporal side in place; sections and keys that are not named stay as they are.

        `temporal_modeling`: type (transformer, lstm, gru, conv3d), temporal_attention, positional_encoding (sinusoidal,
        learnable, none), max_temporal_distance in sampled frames, num_layers, causal; a change makes a new, untrained
        model. `frame_sampling`: strategy, adaptive_threshold, key_frame_threshold (see `Sampling`), interpolation (of
        each frame to the model's size). `motion_modeling`: enable_optical_flow (motion is measured in pixels by optical
        flow rather than by grey levels, and reported), motion_attention, temporal_pooling (the aggregation of `encode`
        when it names none). Raises OptionError that names the valid ones, before anything is changed.
        """
        heads = self.tower.model.config.num_heads
        new, interpolation = changed(self.config, config, width=self.tower.dim, num_heads=heads)
        check_aggregation(new.pooling, token=self.gives_token)
        if new.optical_flow:
            flow_motion(torch.zeros(2, 16, 16))  # OptionError now rather than at the first clip
        if new.temporal != self.config.temporal:
            if self.trained and self.temporal is not None:
                logger.warning("the new temporal model is untrained: clips are encoded as the mean of their frames")
            with random_from(self.seed):
                self.temporal = temporal_model(self.tower, new)
            self.temporal = None if self.temporal is None else self.temporal.to(self.device, self.dtype)
            lay_out(self)
            self.train(self.training)
        if interpolation is not None:
            self.transform = dataclasses.replace(self.transform, interpolation=interpolation)
        self.config = new

    def _reading(self, channel_order: ChannelOrder, value_range: ValueRange) -> ClipReading:
        return ClipReading(
            limit=self.config.max_frames,
            exactly=isinstance(self.tower, ClipTower),
            fps=self.config.fps,
            sampling=self.config.sampling,
            channels=self.tower.model.config.in_chans,
            channel_order=channel_order,
            value_range=value_range,
            unit=partial(unit_pixels, transform=self.transform),
        )
