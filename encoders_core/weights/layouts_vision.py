"""Image and video checkpoints under timm's names. The tables follow the files on disk, not any `state_dict()`."""

from typing import Final

from encoders_core.weights.files import Tensors
from encoders_core.weights.layouts import DROP, Layout, Table, fold_class_position, fuse, transpose, unsqueeze_tokens

# --- transformers: ViT, DeiT, DINOv2 and the video models share their names -----------------------------------------

HF_TRUNK: Final[Table] = (
    (r"^(vit|deit|dinov2|dinov2_with_registers|videomae|vivit|timesformer)\.", ""),
    (r"^(pooler|classifier|cls_classifier|distillation_classifier|decoder|encoder_to_decoder)\.", DROP),
    (r"^(decoder_)?(embeddings\.)?mask_token$|^(decoder_)?position_embeddings$", DROP),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.(register_tokens|distillation_token)$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.time_embeddings$", "time_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.(q|v)_bias$", r".attn.\1.bias"),
    (
        r"\.attention\.attention\.(q)uery\.|\.attention\.attention\.(k)ey\.|\.attention\.attention\.(v)alue\.",
        r".attn.\1\2\3.",
    ),
    (r"\.temporal_attention\.attention\.qkv\.", ".temporal_attn.qkv."),
    (r"\.temporal_attention\.output\.dense\.", ".temporal_attn.proj."),
    (r"\.temporal_dense\.", ".temporal_fc."),
    (r"\.temporal_layernorm\.", ".temporal_norm1."),
    (r"\.attention\.attention\.qkv\.", ".attn.qkv."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.|\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.output\.dense\.|\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


def _finish_hf_vit(tensors: Tensors) -> Tensors:
    return fuse(tensors, ("attn.q", "attn.k", "attn.v"), "attn.qkv")


def _finish_hf_dinov2(tensors: Tensors) -> Tensors:
    return fold_class_position(_finish_hf_vit(tensors))


# --- transformers: CLIP and SigLIP ----------------------------------------------------------------------------------

HF_CLIP_BLOCKS: Final[Table] = (
    (r"^encoder\.layers\.", "blocks."),
    (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
)

HF_CLIP_VISION: Final[Table] = (
    (r"^(text_model|text_projection)\.|^logit_(scale|bias)$|position_ids$", DROP),
    (r"^vision_model\.", ""),
    *HF_CLIP_BLOCKS,
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^pre_layrnorm\.", "norm_pre."),  # (sic): the released files are spelt so
    (r"^post_layernorm\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_", "attn_pool.in_proj."),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^visual_projection\.", "head."),
)


def _finish_hf_clip(tensors: Tensors) -> Tensors:
    tensors = unsqueeze_tokens(fuse(tensors, ("attn.q", "attn.k", "attn.v"), "attn.qkv"))
    for kind in ("weight", "bias"):
        packed = tensors.pop(f"attn_pool.in_proj.{kind}", None)
        if packed is not None:
            width = packed.shape[0] // 3
            tensors |= {f"attn_pool.q.{kind}": packed[:width].clone(), f"attn_pool.kv.{kind}": packed[width:].clone()}
    return tensors


# --- OpenAI and open_clip -------------------------------------------------------------------------------------------

OPENAI_BLOCKS: Final[Table] = (
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.ls_([12])\.gamma$", r".ls\1.gamma"),
)

OPENAI_VISION: Final[Table] = (
    (r"^(?!visual\.)", DROP),
    (r"^visual\.", ""),
    *OPENAI_BLOCKS,
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^proj$", "head.weight"),
)


def _finish_openai(tensors: Tensors) -> Tensors:
    return transpose(unsqueeze_tokens(tensors), "head.weight")


# --- timm, DINOv2's own code, open_clip around timm -----------------------------------------------------------------

TIMM: Final[Table] = (
    (r"^(decoder|mask_token|head_dist\.)", DROP),
    (r"^dist_token$|^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


def _finish_timm(tensors: Tensors) -> Tensors:
    """A head with a bias other than zero is a classifier: the features are what it was fed with."""
    bias = tensors.get("head.bias")
    if bias is None:
        return tensors
    drop = {"head.bias", "head.weight"} if bias.any() else {"head.bias"}
    return {key: value for key, value in tensors.items() if key not in drop}


OPEN_CLIP_TIMM: Final[Table] = (
    (r"^(?!visual\.)", DROP),
    (r"^visual\.trunk\.head\.", DROP),
    (r"^visual\.trunk\.", ""),
    (r"^visual\.head\.proj\.", "head."),
)

_HF_MARK: Final = r"(.*\.)?embeddings\.patch_embeddings\.projection\.weight"

VISION_LAYOUTS: Final = (
    Layout(
        "transformers DINOv2 with registers",
        r"(.*\.)?embeddings\.register_tokens",
        HF_TRUNK,
        _finish_hf_dinov2,
        {"eps": 1e-6, "act": "gelu", "position_resize": "bicubic_antialias"},
    ),
    Layout(
        "transformers DINOv2",
        r"(.*\.)?encoder\.layer\.0\.layer_scale1\.lambda1",
        HF_TRUNK,
        _finish_hf_dinov2,
        {"eps": 1e-6, "act": "gelu", "position_resize": "bicubic"},
    ),
    Layout(
        "transformers ViT",
        _HF_MARK,
        HF_TRUNK,
        _finish_hf_vit,
        {"eps": 1e-12, "act": "gelu", "position_resize": "bicubic"},
    ),
    Layout(
        "transformers CLIP (vision)",
        r"(vision_model\.)?embeddings\.class_embedding",
        HF_CLIP_VISION,
        _finish_hf_clip,
        {"eps": 1e-5, "position_resize": "bicubic"},
    ),
    Layout(
        "transformers SigLIP (vision)",
        r"(vision_model\.)?embeddings\.patch_embedding\.weight",
        HF_CLIP_VISION,
        _finish_hf_clip,
        {"eps": 1e-6, "act": "gelu_tanh", "position_resize": "bicubic"},
    ),
    Layout(
        "open_clip around a timm tower",
        r"visual\.trunk\.patch_embed\.proj\.weight",
        OPEN_CLIP_TIMM,
        defaults={"eps": 1e-6, "act": "gelu", "position_resize": "bicubic_antialias"},
    ),
    Layout(
        "OpenAI / open_clip (vision)",
        r"visual\.conv1\.weight",
        OPENAI_VISION,
        _finish_openai,
        {"eps": 1e-5, "position_resize": "bicubic_antialias"},
    ),
    Layout(
        "MAE's own code",
        r"decoder_embed\.weight",
        TIMM,
        _finish_timm,
        {"eps": 1e-6, "act": "gelu", "position_resize": "bicubic"},
    ),
    Layout(
        "DINOv2's own code",
        r"register_tokens|mask_token|blocks\.0\.mlp\.w12\.weight",
        TIMM,
        fold_class_position,
        {"eps": 1e-6, "act": "gelu", "position_resize": "bicubic_offset"},
    ),
    Layout(
        "timm ViT",
        r"patch_embed\.proj\.weight",
        TIMM,
        _finish_timm,
        {"eps": 1e-6, "act": "gelu", "position_resize": "bicubic_antialias"},
    ),
)
"""Looked through in order: the more particular family stands before the more general one."""
