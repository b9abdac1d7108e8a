"""Weights files: what is read, what is refused and in which words; renames as pure functions; the hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders_core.errors import OptionError, WeightsError, WeightsNotFoundError
from encoders_core.models.eager_linear import lay_out
from encoders_core.models.vit import VisionTransformer, VitConfig
from encoders_core.vision_encoder import VisionEncoder
from encoders_core.weights import hub
from encoders_core.weights.files import find_weights, read_tensors, strip_wrappers, write_tensors
from encoders_core.weights.layouts import detect, fuse, rename
from encoders_core.weights.layouts_vision import VISION_LAYOUTS
from tests.encoders_core.hub_server import hub_of

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}


def vit(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(VitConfig(**(SMALL | changes))).eval()


def same(a: Tensor, b: Tensor) -> bool:
    """Equal up to what the alignment of a file's memory does to sums."""
    return torch.allclose(a, b, atol=1e-6, rtol=0)


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    encoder = VisionEncoder(
        image_size=32, patch_size=8, num_layers=2, hidden_dim=64, num_heads=4, output_dim=16, seed=3
    )
    encoder.save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def test_own_directory_round_trip(own: Path) -> None:
    first = VisionEncoder.from_pretrained(own)
    first.save_pretrained(own)  # over the files that it is mapped from
    again = VisionEncoder.from_pretrained(own)
    assert same(first(images()), again(images()))
    assert not again.training
    assert not again.trained, "random weights stay random through a save"
    assert again.config.num_heads == 4
    assert sorted(path.name for path in own.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_weights_are_safetensors_and_readable_by_others(own: Path) -> None:
    path = own / "model.safetensors"
    assert "blocks.1.attn.qkv.weight" in read_tensors(path)
    assert path.stat().st_mode & 0o044, "not only by the one who saved them"


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_bare_timm_files_load(tmp_path: Path, name: str, prefix: str) -> None:
    model, path = vit(), tmp_path / name
    state = {prefix + key: value for key, value in model.state_dict().items()}
    if name.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "model": state}, path)
    encoder = VisionEncoder.from_pretrained(path)
    assert encoder.trained
    lay_out(model)  # as the encoder is: products round in the order of their layout
    assert same(encoder(images()), model(images()))


def test_sharded_files_are_joined(tmp_path: Path) -> None:
    state = vit().state_dict()
    keys = sorted(state)
    for number, part in enumerate((keys[:9], keys[9:])):
        save_file({key: state[key] for key in part}, tmp_path / f"model-{number}.safetensors")
    index = {key: f"model-{int(key in keys[9:])}.safetensors" for key in keys}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert read_tensors(find_weights(tmp_path)).keys() == state.keys()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret.bin"}}))
    with pytest.raises(WeightsError, match="file names beside the index"):
        read_tensors(find_weights(tmp_path))


def test_half_precision_files_become_what_was_asked(tmp_path: Path) -> None:
    save_file({key: value.half() for key, value in vit().state_dict().items()}, tmp_path / "w.safetensors")
    assert VisionEncoder.from_pretrained(tmp_path / "w.safetensors").dtype == torch.float32
    encoder = VisionEncoder.from_pretrained(tmp_path / "w.safetensors", dtype=torch.bfloat16)
    assert encoder.dtype == torch.bfloat16
    assert encoder.encode(images()).features.dtype == torch.float32


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Trap()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="damaged or no weights file"):
        VisionEncoder.from_pretrained(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"TorchScript archive.*state_dict"):
        read_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_tensors(vit().state_dict(), path) if name.endswith("safetensors") else torch.save(vit().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match=f"{name}: the file is damaged"):
        read_tensors(path)


def test_missing_and_unexpected_keys_are_listed_with_the_family(tmp_path: Path) -> None:
    state = vit().state_dict()
    del state["blocks.1.norm2.weight"]
    state |= {f"blocks.0.adapter.{number}": torch.zeros(1) for number in range(12)}
    save_file(state, tmp_path / "w.safetensors")
    words = r"looked like timm ViT.*missing: blocks.1.norm2.weight; unexpected: blocks.0.adapter.0.* and 2 more"
    with pytest.raises(WeightsError, match=words) as raised:
        VisionEncoder.from_pretrained(tmp_path / "w.safetensors")
    assert raised.value.missing == ("blocks.1.norm2.weight",)
    assert len(raised.value.unexpected) == 12


def test_another_shape_is_named(own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"num_classes": 17}))
    with pytest.raises(WeightsError, match=r"of another shape: head.weight \(16, 64\) instead of \(17, 64\)"):
        VisionEncoder.from_pretrained(own)


def test_unknown_keys_in_our_config_are_named(own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"emed_dim": 64}))
    with pytest.raises(WeightsError, match=r"unknown keys.*emed_dim.*embed_dim"):
        VisionEncoder.from_pretrained(own)


def test_a_foreign_file_shows_its_keys_and_the_known_families(tmp_path: Path) -> None:
    save_file({"layer1.0.conv1.weight": torch.zeros(2)}, tmp_path / "resnet.safetensors")
    with pytest.raises(WeightsError, match=r"layer1.0.conv1.weight.*timm ViT"):
        VisionEncoder.from_pretrained(tmp_path / "resnet.safetensors")


def test_a_clip_file_needs_its_activation_said(tmp_path: Path) -> None:
    state = {"visual.conv1.weight": torch.zeros(64, 3, 8, 8), "visual.class_embedding": torch.zeros(64)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(OptionError, match=r"act='quick_gelu'.*act='gelu'"):
        VisionEncoder.from_pretrained(tmp_path / "w.pt")


def test_families_that_are_not_built_are_named(tmp_path: Path) -> None:
    state = {"embeddings.patch_embeddings.projection.weight": torch.zeros(64, 3, 2, 8, 8)}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit"}))
    with pytest.raises(OptionError, match="model_type 'beit' is not supported; known: vit"):
        VisionEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_act": "mish"}))
    with pytest.raises(OptionError, match="activation 'mish' of the checkpoint is not supported"):
        VisionEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "videomae"}))
    with pytest.raises(WeightsError, match="expected the weights of an image model"):
        VisionEncoder.from_pretrained(tmp_path)


def test_what_is_not_there_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    for source in ("./nowhere", "nowhere.safetensors", "a/b/c", "models/vit.pt", tmp_path / "x" / "y", "vit"):
        with pytest.raises(WeightsNotFoundError, match="no directory or file"):
            VisionEncoder.from_pretrained(source)
    with pytest.raises(WeightsNotFoundError, match=r"expected one of model.safetensors"):
        VisionEncoder.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="without any"):
        strip_wrappers({"epoch": 3}, tmp_path)


# --- timm and its relatives --------------------------------------------------------------------------------------


def test_timm_directory_with_classifier_and_mean_pooling(tmp_path: Path) -> None:
    model = vit(pool="mean", fc_norm=True)
    state = model.state_dict() | {"head.weight": torch.randn(1000, 64), "head.bias": torch.randn(1000)}
    save_file(state, tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch8_gap",
        "num_classes": 1000,
        "global_pool": "avg",
        "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = VisionEncoder.from_pretrained(tmp_path)
    assert same(encoder(images()), model(images())), "features, not class scores"
    assert (encoder.transform.fit, encoder.transform.resize_px) == ("crop", 35)


def test_timm_clip_keeps_its_projection(tmp_path: Path) -> None:
    model = vit(norm_pre=True, patch_bias=False, num_classes=16, head_bias=False, act="quick_gelu", eps=1e-5)
    save_file(model.state_dict() | {"head.bias": torch.zeros(16)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch32_clip_quickgelu_224"}))
    assert same(VisionEncoder.from_pretrained(tmp_path)(images()), model(images()))


def test_open_clip_directory_around_a_timm_tower(tmp_path: Path) -> None:
    model = vit(class_token=False, pool="map", num_classes=16, head_bias=False, act="gelu")
    state = {f"visual.trunk.{key}": value for key, value in model.state_dict().items() if not key.startswith("head")}
    state |= {"visual.head.proj.weight": model.state_dict()["head.weight"], "logit_scale": torch.ones(())}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    config = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": {"image_size": 32, "timm_model_name": "vit_x"}},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    encoder = VisionEncoder.from_pretrained(tmp_path, act="gelu")
    assert same(encoder(images()), model(images()))
    assert encoder.transform.fit == "squash"


def test_dinov2_in_its_own_names(tmp_path: Path) -> None:
    model = vit(init_values=1.0, reg_tokens=2, no_embed_class=True, swiglu=True, mlp_hidden=40)
    state = model.state_dict()
    class_position = torch.randn(1, 1, 64)
    names = {"reg_token": "register_tokens"}
    original = {
        names.get(key, key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")): value
        for key, value in state.items()
    }
    original |= {
        "cls_token": state["cls_token"] - class_position,
        "pos_embed": torch.cat((class_position, state["pos_embed"]), dim=1),
        "mask_token": torch.zeros(1, 64),
    }
    torch.save(original, tmp_path / "dinov2.pth")
    encoder = VisionEncoder.from_pretrained(tmp_path / "dinov2.pth")
    torch.testing.assert_close(encoder(images()), model(images()), atol=1e-4, rtol=0)
    assert encoder.config.position_resize == "bicubic_offset"


def test_deit_with_distillation_token(tmp_path: Path) -> None:
    model = vit(reg_tokens=1)
    state = model.state_dict()
    state["dist_token"] = state.pop("reg_token")
    torch.save({"model": state | {"head_dist.weight": torch.zeros(5, 64)}}, tmp_path / "deit.pth")
    encoder = VisionEncoder.from_pretrained(tmp_path / "deit.pth")
    assert same(encoder(images()), model(images()))


def test_image_size_resizes_table_and_preprocessing(own: Path) -> None:
    bigger = VisionEncoder.from_pretrained(own, image_size=(48, 40))
    original = VisionEncoder.from_pretrained(own)
    assert bigger.config.grid_hw == (6, 5)
    assert bigger.transform.size_hw == (48, 40)
    x = torch.randn(1, 3, 48, 40)
    torch.testing.assert_close(bigger(x), original(x), atol=1e-6, rtol=0)


# --- pure functions ----------------------------------------------------------------------------------------------


def test_rename_leaves_its_input_and_drops() -> None:
    tensors = {"a.x": torch.zeros(1), "b.y": torch.ones(1)}
    renamed = rename(tensors, ((r"^a\.", "c."), (r"^b\.", None), (r"^c\.", "d.")))
    assert list(renamed) == ["d.x"]
    assert list(tensors) == ["a.x", "b.y"]


def test_fuse_fills_the_bias_that_videomae_leaves_out() -> None:
    parts = {f"l.{name}.weight": torch.full((2, 2), float(i)) for i, name in enumerate("qkv")}
    fused = fuse(parts | {"l.q.bias": torch.ones(2), "l.v.bias": torch.ones(2)}, ("q", "k", "v"), "qkv")
    assert fused["l.qkv.bias"].tolist() == [1, 1, 0, 0, 1, 1]
    assert fused["l.qkv.weight"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_each_marker_names_its_own_family() -> None:
    keys = {
        "timm ViT": "patch_embed.proj.weight",
        "transformers ViT": "vit.embeddings.patch_embeddings.projection.weight",
        "transformers CLIP (vision)": "vision_model.embeddings.class_embedding",
        "transformers SigLIP (vision)": "vision_model.embeddings.patch_embedding.weight",
        "OpenAI / open_clip (vision)": "visual.conv1.weight",
        "transformers DINOv2 with registers": "embeddings.register_tokens",
    }
    found = {detect({key: torch.zeros(1)}, VISION_LAYOUTS, "x").name: key for key in keys.values()}
    assert found == keys


# --- the hub -----------------------------------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="hub ids need: pip install 'camvec[hub]'")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("online")
def test_hub_ids_are_downloaded_once_and_then_found_offline(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_of(own) as (endpoint, requests):
        directory = hub.locate("owner/name", endpoint=endpoint, show_progress_bar=False)
        assert {path.name for path in directory.iterdir()} == {path.name for path in own.iterdir()}
        loaded = VisionEncoder.from_pretrained(directory)
        assert same(loaded(images()), VisionEncoder.from_pretrained(own)(images()))
        count = len(requests)
        assert hub.locate("owner/name", endpoint=endpoint, local_files_only=True) == directory
        assert len(requests) == count, "offline means no request"
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library tries five times, with pauses
    assert hub.locate("owner/name", endpoint=endpoint, show_progress_bar=False) == directory, "the hub is gone"


@pytest.mark.usefixtures("online")
def test_a_repository_without_weights_or_not_there_is_named(own: Path) -> None:
    (own / "model.safetensors").unlink()
    with hub_of(own) as (endpoint, _):
        with pytest.raises(WeightsNotFoundError, match=r"owner/name: found none of model.safetensors"):
            hub.locate("owner/name", endpoint=endpoint)
        with pytest.raises(WeightsNotFoundError, match=r"the hub gave no config.json of owner/other"):
            hub.locate("owner/other", endpoint=endpoint)
    with pytest.raises(WeightsNotFoundError, match="cannot reach the hub"):
        hub.locate("owner/unseen", local_files_only=True)


def test_a_directory_named_as_a_hub_id_wins(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(own, tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert hub.locate("owner/name") == Path("owner/name")
