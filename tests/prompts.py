"""CLIP's own tokenizer without a download, from the merges that open_clip ships, and prompts as a model reads them."""

import gzip
import json
import tempfile
from functools import cache
from pathlib import Path

from open_clip.tokenizer import bytes_to_unicode, default_bpe
from transformers import CLIPTokenizerFast

from cyclediff.diffusion.prompt import Prompt
from cyclediff.models.text_to_image import read_prompt

LENGTH = 77


@cache
def clip_tokenizer() -> CLIPTokenizerFast:
    """The tokenizer of Stable Diffusion 1: 49408 tokens."""
    with gzip.open(default_bpe()) as file:
        merges = file.read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    vocabulary = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        Path(folder, "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH})
        )
        return CLIPTokenizerFast.from_pretrained(folder)


def prompt_of(text: str) -> Prompt:
    """A text as Stable Diffusion 1 reads it."""
    return read_prompt(clip_tokenizer(), text, LENGTH)
