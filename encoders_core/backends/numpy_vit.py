"""The Vision Transformer of `encoders_core.models.vit` without torch: same parameter names, same features to 1e-4."""

from collections.abc import Mapping
from typing import Any

from encoders_core.backends.array_ops import Array, activation, layer_norm, linear, sigmoid, softmax
from encoders_core.errors import EncoderError

Weights = Mapping[str, Array]


def forward(xp: Any, config: Mapping[str, Any], weights: Weights, x: Array) -> Array:
    """(B, C, H, W) float32 normalised, of the trained size -> (B, output_dim); without pooling (B, N, output_dim).

    `config` holds the fields of `VitConfig`. Raises EncoderError for another size: resizing positional tables needs
    torch.
    """
    if tuple(x.shape[2:]) != tuple(config["img_size"]):
        raise EncoderError(f"without torch expected pictures of {config['img_size']}, got {tuple(x.shape[2:])}")
    tokens = _embed(xp, config, weights, x)
    for index in range(config["depth"]):
        tokens = _block(xp, config, weights, f"blocks.{index}", tokens)
    if "norm.weight" in weights:
        tokens = layer_norm(xp, weights, "norm", tokens, config["eps"])
    pooled = _pool(xp, config, weights, tokens)
    if config["fc_norm"]:
        pooled = layer_norm(xp, weights, "fc_norm", pooled, config["eps"])
    if config["num_classes"]:
        pooled = linear(weights, "head", pooled)
    return pooled if config["final_activation"] is None else activation(xp, config["final_activation"], pooled)


def _embed(xp: Any, config: Mapping[str, Any], weights: Weights, x: Array) -> Array:
    """Patches, positions, class and register tokens, first norm: (B, prefix + N, D)."""
    size, (batch, channels, height, width) = config["patch_size"], x.shape
    grid = x.reshape(batch, channels, height // size, size, width // size, size).transpose(0, 2, 4, 1, 3, 5)
    kernel = weights["patch_embed.proj.weight"]
    patches = grid.reshape(batch, -1, channels * size * size) @ kernel.reshape(kernel.shape[0], -1).T
    if "patch_embed.proj.bias" in weights:
        patches = patches + weights["patch_embed.proj.bias"]
    positions = weights.get("pos_embed")
    if positions is not None and config["no_embed_class"]:
        patches = patches + positions
    prefix = [weights[name] for name in ("cls_token", "reg_token") if name in weights]
    rows = [xp.broadcast_to(token, (batch, *token.shape[1:])) for token in prefix]
    tokens = xp.concatenate([*rows, patches], axis=1)
    if positions is not None and not config["no_embed_class"]:
        tokens = tokens + positions
    return layer_norm(xp, weights, "norm_pre", tokens, config["eps"]) if config["norm_pre"] else tokens


def _block(xp: Any, config: Mapping[str, Any], weights: Weights, name: str, x: Array) -> Array:
    def norm(which: str, rows: Array) -> Array:
        return layer_norm(xp, weights, f"{name}.{which}", rows, config["eps"])

    def scale(which: str, rows: Array) -> Array:
        gamma = weights.get(f"{name}.{which}.gamma")
        return rows if gamma is None else rows * gamma

    if config["pre_layer_norm"]:
        x = x + scale("ls1", _attention(xp, config, weights, f"{name}.attn", norm("norm1", x)))
        return x + scale("ls2", _feed_forward(xp, config, weights, f"{name}.mlp", norm("norm2", x)))
    x = norm("norm1", x + scale("ls1", _attention(xp, config, weights, f"{name}.attn", x)))
    return norm("norm2", x + scale("ls2", _feed_forward(xp, config, weights, f"{name}.mlp", x)))


def _attention(xp: Any, config: Mapping[str, Any], weights: Weights, name: str, x: Array) -> Array:
    q, k, v = (_heads(part, config["num_heads"]) for part in xp.split(linear(weights, f"{name}.qkv", x), 3, axis=-1))
    return linear(weights, f"{name}.proj", _attend(xp, q, k, v))


def _feed_forward(xp: Any, config: Mapping[str, Any], weights: Weights, name: str, x: Array) -> Array:
    hidden = linear(weights, f"{name}.fc1", x)
    if config["swiglu"]:
        gate, value = xp.split(hidden, 2, axis=-1)
        return linear(weights, f"{name}.fc2", gate * sigmoid(xp, gate) * value)
    return linear(weights, f"{name}.fc2", activation(xp, config["act"], hidden))


def _pool(xp: Any, config: Mapping[str, Any], weights: Weights, tokens: Array) -> Array:
    how, prefix = config["pool"], int(config["class_token"]) + config["reg_tokens"]
    if how == "none":
        return tokens
    if how == "cls":
        return tokens[:, 0]
    if how == "map":
        return _attention_pool(xp, config, weights, tokens)
    patches = tokens[:, prefix:]
    return patches.mean(axis=1) if how == "mean" else patches.max(axis=1)


def _attention_pool(xp: Any, config: Mapping[str, Any], weights: Weights, tokens: Array) -> Array:
    heads, latent = config["num_heads"], weights["attn_pool.latent"]
    latent = xp.broadcast_to(latent, (tokens.shape[0], *latent.shape[1:]))
    q = _heads(linear(weights, "attn_pool.q", latent), heads)
    k, v = (_heads(part, heads) for part in xp.split(linear(weights, "attn_pool.kv", tokens), 2, axis=-1))
    pooled = linear(weights, "attn_pool.proj", _attend(xp, q, k, v))
    normed = layer_norm(xp, weights, "attn_pool.norm", pooled, config["eps"])
    plain = {**config, "swiglu": False}
    return (pooled + _feed_forward(xp, plain, weights, "attn_pool.mlp", normed))[:, 0]


def _heads(x: Array, heads: int) -> Array:
    """(B, N, D) -> (B, heads, N, D / heads)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _attend(xp: Any, q: Array, k: Array, v: Array) -> Array:
    """(B, heads, N, d) each -> (B, N, heads * d)."""
    scores = softmax(xp, q @ k.transpose(0, 1, 3, 2) * q.shape[-1] ** -0.5)
    out = (scores @ v).transpose(0, 2, 1, 3)
    return out.reshape(*out.shape[:2], -1)
