"""Tokenizers of a folder in diffusers' layout: they have their words, and belong to their text encoders."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cyclediff.errors import UserError
from cyclediff.models.backbone import TextEncoder
from cyclediff.models.parts import Repository, load_part

PROBES = ("a cat", "a dog")
LENGTH_UNKNOWN = 10**9  # transformers gives a larger one where a tokenizer does not state it
WHOLE_CLIP = (
    "vision_model.",
    "visual_projection.",
    "text_projection.",
    "logit_scale",
    "text_model.embeddings.position_ids",
)


def load_clip(repository: Repository, number: str = "", projected: bool = False) -> TextEncoder:
    """A CLIP text encoder with its tokenizer.

    Args:
        repository: of the model.
        number: of the part's folder: "" or "_2".
        projected: whether it also gives a projected vector of each text.

    Raises:
        UserError: if a part is missing, incomplete, or does not fit the other.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection
    from transformers import CLIPTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]  # isort: skip

    folder = f"tokenizer{number}"
    require_padding(repository, folder)
    tokenizer = CLIPTokenizerFast.from_pretrained(repository.path, subfolder=folder, **repository.hub)
    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    ignored = [name for name in WHOLE_CLIP if not (projected and name == "text_projection.")]
    network = load_part(cls, repository, f"text_encoder{number}", ignored, class_named=False)
    positions, words = network.config.max_position_embeddings, network.config.vocab_size
    length = tokenizer.model_max_length if tokenizer.model_max_length < LENGTH_UNKNOWN else positions
    require_tokenizer(tokenizer, length, positions, words, f"{repository.path}/{folder}")
    return TextEncoder(tokenizer, network, length)


def load_t5(repository: Repository, number: str, length: int) -> TextEncoder:
    """T5's encoder with its tokenizer.

    Args:
        repository: of the model.
        number: of the part's folder: "_2" or "_3".
        length: tokens of a text, padded.

    Raises:
        UserError: if a part is missing, incomplete, or does not fit the other.
    """
    from transformers import T5EncoderModel, T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    folder = f"tokenizer{number}"
    require_padding(repository, folder)
    tokenizer = T5TokenizerFast.from_pretrained(repository.path, subfolder=folder, **repository.hub)
    network = load_part(T5EncoderModel, repository, f"text_encoder{number}", class_named=False)
    require_tokenizer(tokenizer, length, length, network.config.vocab_size, f"{repository.path}/{folder}", spare=True)
    return TextEncoder(tokenizer, network, length)


def require_padding(repository: Repository, folder: str = "tokenizer") -> None:
    """Require the file that says with which token texts are padded; without it transformers takes another one."""
    file = Path(repository.path, folder, "tokenizer_config.json")
    if repository.is_folder and file.parent.is_dir() and not file.is_file():
        raise UserError(f"{file} is not there, and it says how texts are padded; get the tokenizer's files again")


def require_tokenizer(tokenizer: Any, length: int, positions: int, words: int, where: str, spare: bool = False) -> None:
    """Require that a tokenizer has its words, and belongs to its text encoder.

    Args:
        tokenizer: of transformers.
        length: tokens that a text is padded to.
        positions: tokens that the encoder can read.
        words: tokens that the encoder knows.
        where: the tokenizer's folder, for messages.
        spare: whether the encoder may know more tokens than there are, as T5 does, whose table is padded.

    Raises:
        UserError: if it has not, or does not.
    """
    cat, dog = (tokenizer(text).input_ids for text in PROBES)
    if cat == dog:
        raise UserError(f"{where} makes the same tokens of {PROBES[0]!r} and {PROBES[1]!r}; get its files again")
    numbers = list(tokenizer.get_vocab().values())
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{where} gives several words one number; get its files again")
    if length > positions or max(numbers) >= words:
        raise UserError(
            f"{where} makes up to {length} tokens of {max(numbers) + 1} kinds, and the text encoder reads {positions} "
            f"of {words}; get the tokenizer that belongs to it"
        )
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    lost = _never_made(model, tokenizer.get_added_vocab()) if model["type"] == "BPE" else words - len(numbers)
    if lost > 0 and not spare:
        raise UserError(f"{where} never makes {lost} of the text encoder's {words} tokens; get its files again")


def _never_made(model: Mapping[str, Any], added: Collection[str]) -> int:
    """How many tokens of byte pair encoding are neither a letter nor made by a merge: 0 where its files are whole."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    made, end = {"".join(pair) for pair in pairs} | set(added), model["end_of_word_suffix"] or ""
    return sum(len(token.removesuffix(end)) > 1 and token not in made for token in model["vocab"])
