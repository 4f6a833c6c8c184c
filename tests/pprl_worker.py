"""One of several processes that train PPRL: python -m torch.distributed.run … -m tests.pprl_worker MODEL FOLDER.

FOLDER/NAME.yaml is trained into FOLDER/NAME, one after the other."""

from __future__ import annotations

import sys
from pathlib import Path

from training.pprl import PPRLConfig, start
from training.recipe import load

model, folder = sys.argv[1:]
for recipe in sorted(Path(folder).glob("*.yaml")):
    start(load(recipe, PPRLConfig), model, None, recipe.with_suffix(""))
