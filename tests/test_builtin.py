"""The built-in models by name: what they are, and that the merged one is the sum that its card tells."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from clvr import builtin
from clvr.context import Context
from clvr.dswm.merge import merge
from clvr.dswm.recipe import Recipe, Source
from clvr.errors import MissingFileError, VLMSetupError
from clvr.flux2.folder import find
from clvr.flux2.generator import Flux2Generator
from clvr.models import Choice, outline

FEW = {"distilled", "merged"}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
LORA = builtin.PATH / "loras" / "pprl" / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("variant", builtin.VARIANTS)
def test_every_variant_draws_as_its_kind_does(variant):
    folder = find(builtin.folder(f"builtin:{variant}"))
    assert folder.distilled == (variant in FEW)
    assert (folder.sampling.steps, folder.sampling.guidance) == ((4, 1.0) if variant in FEW else (28, 4.0))
    drawn = Flux2Generator.load(folder.path, steps=2, guidance=1.0).draw(Context("a red circle"), (64, 64), [1])
    assert drawn.images[0].size == (64, 64)


def test_builtin_alone_is_the_default_and_other_names_are_left_alone():
    assert builtin.folder("builtin") == builtin.folder(f"builtin:{builtin.DEFAULT}")
    assert builtin.named("builtin:sft")
    assert not builtin.named("builtin-like/folder")
    assert str(builtin.folder("some/folder")) == "some/folder"


def test_a_variant_that_there_is_not_is_named_with_those_that_there_are():
    with pytest.raises(MissingFileError, match=r"no built-in model 'builtin:huge'.*builtin:base, builtin:sft"):
        builtin.folder("builtin:huge")


def test_variants_need_no_vlm_of_their_own():
    assert Choice(model="builtin:merged").resolved().vlm == "builtin"
    assert outline(Choice(model="builtin:merged").resolved()).nfe == 4
    with pytest.raises(VLMSetupError):
        Choice(model="some/folder").resolved()


def test_the_merged_weights_are_the_base_and_the_increments_of_the_others(tmp_path):
    parts = (Source(builtin.folder("builtin:sft")), Source(LORA))
    merge(Recipe(tmp_path / "m", builtin.PATH, Source(builtin.folder("builtin:distilled")), parts, "bf16", "diffusers"))
    ours, shipped = (load_file(folder / WEIGHTS) for folder in (tmp_path / "m", builtin.folder("builtin:merged")))
    assert ours.keys() == shipped.keys()
    assert all(torch.equal(ours[name], shipped[name]) for name in ours)
