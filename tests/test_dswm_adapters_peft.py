"""What PEFT and diffusers save is added as they themselves add it."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from clvr.dswm.adapters import is_adapter, open_adapter
from clvr.errors import MissingFileError, WeightsError

from .adapters_fixtures import SHAPES, delta, empty_model

MODULES = (
    "to_q to_k to_v add_._proj to_out.0 to_add_out to_qkv_mlp_proj linear_in linear_out linear proj_out x_embedder"
)
LINEAR = rf".*({'|'.join(MODULES.split())})"
CONFIGS = {
    "lora": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 3,
        "rank_pattern": {"to_q": 2, r"transformer_blocks\.1\.attn\.to_k": 7, "^norm_out.linear": 5},
        "alpha_pattern": {r"ff\.linear_(in|out)": 11, "transformer_blocks.0.attn.to_q": 1, ".*out": 13.5},
    },
    "patterns with rslora": {"r": 3, "lora_alpha": 3, "use_rslora": True, "alpha_pattern": {"single.*": 8}},
    "bare embedder": {"r": 2, "lora_alpha": 1, "target_modules": ["context_embedder", "timestep_embedder.linear_1"]},
}


def lora_config(name):
    return LoraConfig(**{"target_modules": LINEAR, "init_lora_weights": False, **CONFIGS[name]})


def assert_same(adapter, merged):
    """merged: diffusers keys -> ΔW, all keys of the model."""
    for key, wanted in merged.items():
        torch.testing.assert_close(delta(adapter, key, "diffusers"), wanted, rtol=1e-5, atol=1e-6, msg=key)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A LoRA saved by PEFT, and the ΔW that PEFT merges."""
    made = {}

    def save(name):
        if name not in made:
            torch.manual_seed(0)
            model = get_peft_model(empty_model(), lora_config(name))
            folder = tmp_path_factory.mktemp("peft")
            model.save_pretrained(folder)
            again = PeftModel.from_pretrained(empty_model(), folder)  # PEFT sorts the patterns when it saves
            made[name] = folder, again.merge_and_unload().state_dict()
        return made[name]

    return save


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_s_own_folder_adds_what_peft_merges(saved, name):
    folder, merged = saved(name)
    assert is_adapter(folder)
    adapter = open_adapter(folder, SHAPES)
    assert adapter.format == "peft"
    assert_same(adapter, merged)
    assert any(t.any() for t in merged.values())


def test_the_weights_of_a_peft_folder_named_as_a_file_keep_their_config(saved):
    folder, merged = saved("rslora")
    assert_same(open_adapter(folder / "adapter_model.safetensors", SHAPES), merged)


def test_a_peft_folder_without_its_config_is_not_guessed(saved, tmp_path):
    folder, _ = saved("lora")
    shutil.copy(folder / "adapter_model.safetensors", tmp_path)
    with pytest.raises(MissingFileError, match=r"lacks adapter_config\.json, which holds the LoRA's alpha"):
        open_adapter(tmp_path, SHAPES)


def test_a_config_of_another_rank_is_refused(saved, tmp_path):
    shutil.copy(saved("lora")[0] / "adapter_model.safetensors", tmp_path)
    shutil.copy(saved("patterns")[0] / "adapter_config.json", tmp_path)
    with pytest.raises(WeightsError, match=r"tells a rank of 5 for norm_out.linear, whose factors have rank 4"):
        open_adapter(tmp_path, SHAPES)


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_own_file_adds_what_diffusers_fuses(tmp_path, name):
    diffusers_logging.set_verbosity_error()
    torch.manual_seed(1)
    model = empty_model()
    model.add_adapter(lora_config(name))
    Flux2KleinPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    again = empty_model()
    again.load_lora_adapter(str(tmp_path), weight_name="pytorch_lora_weights.safetensors", prefix="transformer")
    again.fuse_lora()
    fused = {key.replace(".base_layer", ""): t for key, t in again.state_dict().items() if ".lora_" not in key}
    assert is_adapter(tmp_path)
    adapter = open_adapter(tmp_path, SHAPES)
    assert adapter.format == "diffusers"
    assert_same(adapter, fused)


def test_without_config_and_alpha_the_scale_is_one(saved, tmp_path):
    folder, _ = saved("lora")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "alone.safetensors")
    adapter = open_adapter(tmp_path / "alone.safetensors", SHAPES)
    name = "base_model.model.proj_out.lora_{}.weight"
    wanted = tensors[name.format("B")] @ tensors[name.format("A")]
    torch.testing.assert_close(delta(adapter, "proj_out.weight", "diffusers"), wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "trains biases"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["proj_out"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "began with 'pissa'"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_cannot_be_merged_is_refused_by_its_name(tmp_path, settings, message):
    model = empty_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    config = {"r": 2, "lora_alpha": 2, "target_modules": ["x_embedder", "to_k"], **settings}
    if settings.get("lora_bias"):
        config["init_lora_weights"] = True
        config["target_modules"] = ["to_k"]
        for block in model.transformer_blocks:
            block.attn.to_k.bias = torch.nn.Parameter(torch.zeros(len(block.attn.to_k.weight)))
    get_peft_model(model, LoraConfig(**config)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=message):
        open_adapter(tmp_path, SHAPES)
