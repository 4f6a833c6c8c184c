"""A tiny OWLv2 with random weights, of the real classes, in the form in which such models are published."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

SIDE = 64


def make(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = _tokenizer(folder)
    vision = {"image_size": SIDE, "patch_size": 16, "hidden_size": 32, "intermediate_size": 32}
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 16}
    depth = {"num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = Owlv2Config(text_config={**text, **depth, **ends}, vision_config={**vision, **depth}, projection_dim=32)
    Owlv2ForObjectDetection(config).eval().save_pretrained(folder)
    images = Owlv2ImageProcessor(size={"height": SIDE, "width": SIDE})
    Owlv2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), "utf-8")
    merges.write_text("#version: 0.2\n", "utf-8")
    made = CLIPTokenizer(str(vocabulary), str(merges), model_max_length=16, pad_token="<pad>")
    assert len(made) == len(tokens)
    return made
