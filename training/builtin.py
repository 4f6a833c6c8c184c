"""Train the built-in model from nothing: VAE, tokenizer, text encoder and DiT, into a klein folder.

    python -m training.builtin --recipe training/recipes/builtin.yaml --run runs/builtin --out clvr/builtin

Every stage is kept in the run's folder; a second call goes on where the first one stopped, bit for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from .config import BuiltinConfig
from .dit import Trainer
from .model import make_tokenizer, save_folder
from .recipe import FOLDER, load
from .vae import main as train_vae
from .world import corpus

RECIPE = FOLDER / "builtin.yaml"


def prepare(
    config: BuiltinConfig, folder: Path, start: Path | None = None
) -> tuple[AutoencoderKLFlux2, Qwen2Tokenizer]:
    """The VAE and the tokenizer of a run: those in its folder, else those of the model to start from, else new."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("vae", "tokenizer"):
        if start and not (folder / part).exists():
            shutil.copytree(start / part, folder / part)
    if not (folder / "vae" / "config.json").exists():
        train_vae(folder / "vae", config.vae, config.resolution)
    if not (folder / "tokenizer" / "tokenizer.json").exists():
        make_tokenizer(config.text, corpus()).save_pretrained(folder / "tokenizer")
    vae = AutoencoderKLFlux2.from_pretrained(folder / "vae").float().eval()
    return vae, Qwen2Tokenizer.from_pretrained(folder / "tokenizer")


def begin(trainer: Trainer, start: Path) -> None:
    """Take the weights of a published model, whose sizes must be the recipe's; optimizers start anew."""
    text = Qwen3ForCausalLM.from_pretrained(start / "text_encoder")
    transformer = Flux2Transformer2DModel.from_pretrained(start / "transformer")
    trainer.text.load_state_dict(text.float().state_dict())
    trainer.transformer.load_state_dict(transformer.float().state_dict())
    trainer.average.reset()


def publish(trainer: Trainer, out: Path) -> None:
    """Write the averaged weights as a folder that Flux2KleinPipeline loads."""
    with trainer.average.swapped():
        save_folder(
            out,
            trainer.config,
            vae=trainer.encoder.vae,
            text_encoder=trainer.text,
            tokenizer=trainer.tokenizer,
            transformer=trainer.transformer,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--run", type=Path, default=Path("runs/builtin"), help="checkpoints and curves")
    parser.add_argument("--out", type=Path, default=Path("clvr/builtin"), help="where the model folder goes")
    parser.add_argument("--start", type=Path, help="a published model to start a new run from")
    parser.add_argument("--samples", type=int, help="samples to train on in all, instead of the recipe's")
    parser.add_argument("--minutes", type=float, help="checkpoint, publish and stop after this long")
    options = parser.parse_args()
    config = load(options.recipe, BuiltinConfig)
    if options.samples:
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, samples=options.samples))
    torch.set_num_threads(config.threads)
    stop = time.monotonic() + options.minutes * 60 if options.minutes else None
    trainer = Trainer(config, *prepare(config, options.run, options.start), options.run)
    resumed = trainer.resume()
    if options.start and not resumed:
        begin(trainer, options.start)
    print("resumed" if resumed else "new run", vars(trainer.at), flush=True)
    trainer.run(stop)
    publish(trainer, options.out)


if __name__ == "__main__":
    main()
