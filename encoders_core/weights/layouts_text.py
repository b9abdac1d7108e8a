"""Text checkpoints under native names: transformers CLIP, SigLIP and BERT, OpenAI and open_clip."""

from typing import Final

from encoders_core.weights.files import Tensors
from encoders_core.weights.layouts import DROP, Layout, Table, fuse, transpose, unsqueeze_tokens
from encoders_core.weights.layouts_vision import HF_CLIP_BLOCKS, OPENAI_BLOCKS

HF_CLIP_TEXT: Final[Table] = (
    (r"^(vision_model|visual_projection)\.|^logit_(scale|bias)$|position_ids$", DROP),
    (r"^text_model\.", ""),
    *HF_CLIP_BLOCKS,
    (r"^embeddings\.token_embedding\.", "token_embed."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^final_layer_norm\.", "norm."),
    (r"^text_projection\.", "head."),
)

OPENAI_TEXT: Final[Table] = (
    (r"^visual\.|^logit_(scale|bias)$|attn_mask$|^(input_resolution|context_length|vocab_size)$", DROP),
    (r"^text\.", ""),
    *OPENAI_BLOCKS,
    (r"^token_embedding\.", "token_embed."),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_final\.", "norm."),
    (r"^text_projection\.", "head."),
    (r"^text_projection$", "projection"),
)

HF_BERT: Final[Table] = (
    (r"^bert\.", ""),
    (r"^(pooler|cls)\.|position_ids$", DROP),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^embeddings\.word_embeddings\.", "token_embed."),
    (r"^embeddings\.position_embeddings\.weight$", "pos_embed"),
    (r"^embeddings\.token_type_embeddings\.", "type_embed."),
    (r"^embeddings\.LayerNorm\.", "norm_embed."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.self\.(q)uery\.|\.attention\.self\.(k)ey\.|\.attention\.self\.(v)alue\.", r".attn.\1\2\3."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.output\.LayerNorm\.", ".norm1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.output\.LayerNorm\.", ".norm2."),
)


def _finish_hf(tensors: Tensors) -> Tensors:
    return unsqueeze_tokens(fuse(tensors, ("attn.q", "attn.k", "attn.v"), "attn.qkv"), ("pos_embed",))


def _finish_openai(tensors: Tensors) -> Tensors:
    """A bare matrix is (width, dim); a linear layer (custom text towers of open_clip) is the right way round."""
    tensors = transpose(unsqueeze_tokens(tensors, ("pos_embed",)), "projection")
    if "projection" in tensors:
        tensors["head.weight"] = tensors.pop("projection")
    return tensors


TEXT_LAYOUTS: Final = (
    Layout(
        "transformers BERT",
        r"(bert\.)?embeddings\.word_embeddings\.weight",
        HF_BERT,
        _finish_hf,
        {
            "act": "gelu",
            "eps": 1e-12,
            "causal": False,
            "masked": True,
            "pre_layer_norm": False,
            "pool": "mean",
            "num_heads": 12,
        },
    ),
    Layout(
        "transformers SigLIP (text)",
        r"(text_model\.)?head\.weight",
        HF_CLIP_TEXT,
        _finish_hf,
        {"act": "gelu_tanh", "eps": 1e-6, "causal": False, "pool": "last", "num_heads": 12},
    ),
    Layout(
        "transformers CLIP (text)",
        r"(text_model\.)?embeddings\.token_embedding\.weight",
        HF_CLIP_TEXT,
        _finish_hf,
        {"eps": 1e-5, "causal": True, "pool": "eot"},
    ),
    Layout(
        "OpenAI / open_clip (text)",
        r"(text\.)?token_embedding\.weight",
        OPENAI_TEXT,
        _finish_openai,
        {"eps": 1e-5, "causal": True, "pool": "eot"},
    ),
)
"""Looked through in order: the more particular family stands before the more general one."""
