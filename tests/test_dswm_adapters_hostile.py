"""Adapter configs and files from strangers give an error, at once, and never an increment of their own kind."""

from __future__ import annotations

import json
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from clvr.dswm.adapters import open_adapter
from clvr.dswm.adapters.config import METADATA
from clvr.errors import ClvrError, MissingFileError, WeightsError

from .adapters_fixtures import SHAPES, opened, piece_delta

MODULES = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.attn.to_qkv_mlp_proj")
TARGETS = ("double_blocks.0.img_attn.qkv.weight:0", "single_blocks.1.linear1.weight:0")
GOOD = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
SECONDS = 20.0


def tensors(prefix="base_model.model."):
    found = {}
    for module, piece in zip(MODULES, TARGETS, strict=True):
        rows, columns = SHAPES[piece]
        found[f"{prefix}{module}.lora_A.weight"] = torch.ones(2, columns)
        found[f"{prefix}{module}.lora_B.weight"] = torch.ones(rows, 2)
    return found


@pytest.fixture
def folder(tmp_path):
    save_file(tensors(), tmp_path / "adapter_model.safetensors")
    return tmp_path


def configured(folder, **settings):
    (folder / "adapter_config.json").write_text(json.dumps({**GOOD, **settings}))
    return open_adapter(folder, SHAPES)


def scale(adapter, number=0):
    """Both factors hold ones of rank 2."""
    return piece_delta(adapter, TARGETS[number])[0, 0].item() / 2


CONFIGS = {
    "empty": (b"", "is not JSON"),
    "list": (b"[]", "no JSON object"),
    "bytes": (b"\xff\xfe\x00", "is not JSON"),
    "deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is not JSON"),
    "long": (b" " * (1 << 20) + b"{}", "more than 1024 KB"),
    "digits": (b'{"peft_type": "LORA", "r": ' + b"9" * 100_000 + b"}", "is not JSON"),
}
SETTINGS = {
    "no type": ({"peft_type": None}, "adapter of type None"),
    "LoHa": ({"peft_type": "LOHA"}, "adapter of type 'LOHA'"),
    "LoKr": ({"peft_type": "LOKR"}, "LoKr and LoHa as LyCORIS saves them"),
    "OFT": ({"peft_type": "OFT"}, "adapter of type 'OFT'"),
    "type of types": ({"peft_type": {"LORA": 1}}, "adapter of type"),
    "r text": ({"r": "2"}, "gives '2' as r"),
    "r fraction": ({"r": 2.0}, "gives 2.0 as r"),
    "r true": ({"r": True}, "gives True as r"),
    "r none": ({"r": 0}, "gives 0 as r"),
    "r list": ({"r": [2]}, "as r, no positive whole number"),
    "alpha text": ({"lora_alpha": "2"}, "gives '2' as lora_alpha"),
    "alpha nan": ({"lora_alpha": float("nan")}, "gives nan as lora_alpha, no finite number"),
    "alpha inf": ({"lora_alpha": float("inf")}, "gives inf as lora_alpha"),
    "alpha huge": ({"lora_alpha": 10**400}, "as lora_alpha, no finite number"),
    "alpha null": ({"lora_alpha": None}, "gives None as lora_alpha"),
    "rslora text": ({"use_rslora": "yes"}, "gives 'yes' as use_rslora"),
    "patterns listed": ({"alpha_pattern": ["to_q"]}, "no map of at most"),
    "many patterns": ({"rank_pattern": {f"m{i}": 2 for i in range(5000)}}, "no map of at most 4096 patterns"),
    "pattern of text": ({"alpha_pattern": {"to_q": "8"}}, "gives '8' as alpha_pattern"),
    "bad pattern": ({"alpha_pattern": {"to_(q": 8}}, "no regular expression"),
    "long pattern": ({"alpha_pattern": {"a" * 600: 8}}, "too long or repeats a group"),
    "nested repeats": ({"alpha_pattern": {r"(\w+)+x": 8}}, "repeats a group"),
    "repeated choice": ({"rank_pattern": {"(a|a)*x": 8}}, "repeats a group"),
    "repeated class": ({"rank_pattern": {r"(?:\w|_){1,60}x": 8}}, "repeats a group"),
    "many repeats": ({"alpha_pattern": {".*.*.*.*x": 8}}, "take too long to match"),
    "many choices": ({"alpha_pattern": {"(.|..)" * 20 + "x": 8}}, "take too long to match"),
    "many slow patterns": ({"alpha_pattern": {f".*.*.*{i}x": 8 for i in range(9)}}, "take too long to match"),
    "huge repeat": ({"alpha_pattern": {"a{99999999999}": 8}}, "no regular expression"),
    "bias": ({"bias": "all"}, "trains biases"),
    "fan in": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "start": ({"init_lora_weights": "olora"}, "began with 'olora'"),
    "start listed": ({"init_lora_weights": ["pissa"]}, "began with"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_none_is_refused(folder, name):
    data, message = CONFIGS[name]
    (folder / "adapter_config.json").write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        open_adapter(folder, SHAPES)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_cannot_be_is_named(folder, name):
    given, message = SETTINGS[name]
    began = time.monotonic()
    with pytest.raises(WeightsError, match=message) as caught:
        configured(folder, **given)
    assert caught.value.remedy
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize(
    "name", [name for name in SETTINGS if "type" not in name and not name.startswith(("Lo", "OFT"))]
)
def test_the_header_s_copy_of_a_config_is_as_untrusted(tmp_path, name):
    given, message = SETTINGS[name]
    config = {f"transformer.{key}": value for key, value in {**GOOD, **given}.items()}
    with pytest.raises(WeightsError, match=message):
        opened(tmp_path / "a.safetensors", tensors("transformer."), {METADATA: json.dumps(config)})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":' * 100_000, " " * (1 << 21)], ids=len)
def test_a_header_s_config_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(WeightsError, match=f"{METADATA} in the header of .* is no JSON object"):
        opened(tmp_path / "a.safetensors", tensors("transformer."), {METADATA: text})


def test_a_header_s_config_of_a_text_encoder_alone_says_nothing_of_the_transformer(tmp_path):
    text = json.dumps({"text_encoder.r": 8, "text_encoder.lora_alpha": 64})
    assert scale(opened(tmp_path / "a.safetensors", tensors("transformer."), {METADATA: text})) == 1


@pytest.mark.parametrize(
    ("patterns", "scales"),
    [
        ({"to_q": 8}, (4, 1)),
        ({r"blocks\.\d+\.attn\.to_q": 8}, (1, 1)),
        ({r"transformer_blocks\.\d+\.attn\.to_(q|k)": 8}, (4, 1)),
        ({"^transformer_blocks.0.attn.to_q": 8, "to_q": 6, ".*": 4}, (4, 2)),
        ({"attn.[^.]*": 8}, (4, 4)),
        ({MODULES[1]: 3, "nothing": 5}, (1, 1.5)),
    ],
    ids=str,
)
def test_patterns_match_as_in_peft_whole_names_or_their_ends(folder, patterns, scales):
    adapter = configured(folder, alpha_pattern=patterns)
    assert (scale(adapter, 0), scale(adapter, 1)) == scales


def test_the_slowest_patterns_that_are_taken_match_in_time(folder):
    began = time.monotonic()
    configured(folder, alpha_pattern={r"[\w.]*[\w.]*[\w.]*!": 8}, rank_pattern={f"m{i}": 2 for i in range(4000)})
    assert time.monotonic() - began < SECONDS


def test_a_tensor_of_alpha_is_worth_more_than_a_config(tmp_path):
    given = tensors("transformer.") | {f"transformer.{MODULES[0]}.alpha": torch.tensor(6.0)}
    config = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 8})
    adapter = opened(tmp_path / "a.safetensors", given, {METADATA: config})
    assert (scale(adapter, 0), scale(adapter, 1)) == (3, 4)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=st.dictionaries(names, values, max_size=4))
def test_any_config_opens_or_is_refused(folder, given):
    try:
        adapter = configured(folder, **given)
    except ClvrError:
        return
    assert torch.isfinite(torch.tensor(scale(adapter)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(st.text(min_size=1, max_size=30), max_size=3, unique=True),
    shape=st.lists(st.integers(0, 3), max_size=4),
    kind=st.sampled_from([torch.float32, torch.int64, torch.bool, torch.float8_e5m2, torch.complex64]),
    end=st.sampled_from(["", ".lora_A.weight", ".lokr_w1", ".hada_w2_b", ".diff", ".alpha"]),
    known=st.booleans(),
)
def test_any_file_opens_or_is_refused(tmp_path, keys, shape, kind, end, known):
    given = {f"{MODULES[0]}{end}" if known else key + end: torch.zeros(shape).to(kind) for key in keys}
    with pytest.raises(WeightsError):
        opened(tmp_path / "a.safetensors", given)


def test_keys_without_end_are_named_in_time(tmp_path):
    began = time.monotonic()
    keys = [".lora_A" * 20_000, "x" * 200_000, "_lora" * 50_000, ".lora_A.weight" * 30, "a.b" * 100 + ".alpha"]
    for key in keys:
        with pytest.raises(WeightsError, match="without a place") as caught:
            opened(tmp_path / "a.safetensors", {f"{key}{i}": torch.zeros(1) for i in range(9)})
        assert len(str(caught.value)) < 4000
    assert time.monotonic() - began < SECONDS


def test_a_folder_of_nothing_names_what_it_lacks(tmp_path):
    with pytest.raises(MissingFileError, match=r"lacks adapter_model\.safetensors"):
        open_adapter(tmp_path, SHAPES)
