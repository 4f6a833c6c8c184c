"""The memory arithmetic of recipes: exact where it can be, and the recipes fit the devices that they name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from benchmarks.real_models import KLEINS
from training.memory import GIB, empty, needed, saved_bytes
from training.recipe import FOLDER, load
from training.runs import RunConfig
from training.sft_dit import SFTConfig, add_lora

from . import tiny_klein

ONE_REFERENCE = {"images": 8192, "text": 512}


def of(name, size, processes, **changes):
    recipe = dataclasses.replace(load(FOLDER / f"{name}.yaml", SFTConfig), **changes)
    return needed(recipe, KLEINS[size].transformer, processes, **ONE_REFERENCE)


@pytest.mark.parametrize(
    ("name", "size", "processes"), [("sft_dit_4b", "4B", 8), ("sft_dit_4b_lora", "4B", 1), ("sft_dit_9b", "9B", 8)]
)
def test_recipes_fit_the_devices_that_they_name(name, size, processes):
    assert of(name, size, processes).total < 64 * GIB


def test_all_weights_of_the_9b_fit_no_device_alone():
    alone = of("sft_dit_9b", "9B", 8, run=RunConfig(shard=False))
    states = alone.weights + alone.gradients + alone.adam
    assert states / GIB == pytest.approx(135, abs=1)
    assert alone.weights * 8 == pytest.approx(of("sft_dit_9b", "9B", 8).weights * 64, rel=1e-6)


def test_states_are_counted_exactly():
    model = tiny_klein.transformer()
    count = sum(p.numel() for p in model.parameters())
    found = needed(SFTConfig(), dict(model.config), 1, 32, 16)
    assert (found.weights, found.gradients, found.adam, found.average) == (4 * count, 4 * count, 8 * count, 0)
    lora = load(FOLDER / "sft_dit_4b_lora.yaml", SFTConfig)
    add_lora(model, lora.lora, 0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = needed(lora, dict(model.config), 1, 32, 16)
    assert (found.gradients, found.adam, found.average) == (4 * trained, 8 * trained, 4 * trained)
    assert found.weights == 2 * count + 4 * trained


def test_what_autograd_keeps_is_counted_once():
    x = torch.zeros(3, 4, requires_grad=True)
    layer = nn.Linear(4, 5)
    assert saved_bytes(layer, lambda m: m(x).exp()) == x.nbytes + 3 * 5 * 4


def test_activations_grow_with_tokens_and_shrink_with_checkpointing():
    config = KLEINS["tiny"].transformer
    kept = SFTConfig(gradient_checkpointing=False)
    few, many = (needed(kept, config, 1, images, 16).activations for images in (64, 256))
    assert 3 * few < many < 5 * few
    deep = {**config, "num_single_layers": 20}
    saved = needed(SFTConfig(), deep, 1, 256, 16).activations
    assert saved * 3 < needed(kept, deep, 1, 256, 16).activations
    assert needed(SFTConfig(micro=3), deep, 1, 256, 16).activations == 3 * saved


def test_counting_takes_no_memory():
    assert all(p.device.type == "meta" for p in empty(KLEINS["9B"].transformer).parameters())
