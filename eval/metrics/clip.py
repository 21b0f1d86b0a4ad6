"""CLIP scores of edits: does the picture fit the target text, and did it change as the text did?

Symbols: i, o, s, t are the features of the edited picture, the original, the source text and the target text, divided
by their norms. The definitions are those of ChenWu98/cycle-diffusion's evaluator: no factor 100, no clamp, no epsilon.
"""

import json
import logging
import warnings
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eval.metrics.features import BATCH, file_digest
from eval.metrics.metric import Metric
from eval.random_mark import is_random
from eval.weight_files import require_finite, require_weights_file

CLIP, DIRECTIONAL_CLIP = Metric("CLIP", 3, True), Metric("D-CLIP", 3, True)
# A shorter difference of normalised features has no direction. Measured on ViT-B/32 in float32: equal pictures in
# batches of unequal sizes differ by 6e-7, a twentieth of this; the last bit of one of 224² pixels moves the features by
# 1e-5 even in an untrained network.
SMALLEST = 1e-5
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
OPENAI, HUB = "openai", "hf-hub:"
CONSTANTS = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's archives hold besides weights


def clip_score(image: Tensor, target_text: Tensor) -> Tensor:
    """i·t, the cosine of picture and target text; features (n, d), of any length → float64 (n,) in [-1, 1]."""
    return (_unit(image) * _unit(target_text)).sum(-1)


def directional_clip(image: Tensor, original: Tensor, source_text: Tensor, target_text: Tensor) -> Tensor:
    """(i - o)·(t - s) / (|i - o| |t - s|), the cosine of the picture's change and the text's.

    Where the picture is unchanged, nothing agrees with the text, and the value is 0. Where the text is unchanged, there
    is nothing to agree with, and the value is NaN. The official code yields NaN or rounding errors in both cases.

    Args:
        image: features of the edited pictures, (n, d) or anything that broadcasts with the others, of any length.
        original: of the pictures before.
        source_text: of what was on them.
        target_text: of what should be.

    Returns:
        float64 (n,) in [-1, 1], or NaN.
    """
    picture, text = _unit(image) - _unit(original), _unit(target_text) - _unit(source_text)
    cosine = (picture * text).sum(-1) / (picture.norm(dim=-1) * text.norm(dim=-1))
    value = torch.where(is_defined(image, original, source_text, target_text), cosine, 0.0)
    return torch.where(changed(source_text, target_text), value, torch.nan)


def is_defined(image: Tensor, original: Tensor, source_text: Tensor, target_text: Tensor) -> Tensor:
    """Whether both picture and text changed; arguments of `directional_clip` → bool (n,)."""
    return changed(original, image) & changed(source_text, target_text)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Whether features (n, d) differ in their direction by more than rounding, bool (n,)."""
    return (_unit(after) - _unit(before)).norm(dim=-1) > SMALLEST


def _unit(features: Tensor) -> Tensor:
    features = features.double()
    return features / features.norm(dim=-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class ClipScorer:
    """A CLIP that turns pictures and texts into features.

    Args:
        protocol: network with its activation, digest of its files, and preparation of pictures, for protocol strings:
            "ViT-B-32-quickgelu-1a2b3c4d/pil-bicubic224", "ViT-B-32-gelu-1a2b3c4d/pil-bicubic224".
        prepare: an RGB picture → the network's input, (3, h, w).
        network: with encode_image and encode_text.
        tokenize: texts → the network's input.
        device: where the network is.
        random: whether the network's weights are random.
        known: features of the texts seen so far.
        unread: the end of a text that the network does not read, because it has too many tokens; "" if it reads all.
    """

    protocol: str
    prepare: Callable[[Image.Image], Tensor]
    network: Any
    tokenize: Callable[[list[str]], Tensor]
    device: str = "cpu"
    random: bool = False
    known: dict[str, Tensor] = field(default_factory=dict, repr=False)
    unread: Callable[[str], str] = lambda text: ""

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features of pictures of any size, normalised, float64 (n, d) on the CPU."""
        chunks = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
        prepared = (torch.stack([self.prepare(picture.convert("RGB")) for picture in chunk]) for chunk in chunks)
        return torch.cat([self._features(self.network.encode_image, batch) for batch in prepared])

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, normalised, float64 (n, d) on the CPU; equal texts have equal ones."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for chunk in (new[start : start + BATCH] for start in range(0, len(new), BATCH)):
            features = self._features(self.network.encode_text, self.tokenize(chunk))
            self.known.update(zip(chunk, features, strict=True))
        return torch.stack([self.known[text] for text in texts])

    def warn_of_cut(self, texts: Iterable[str]) -> None:
        """Warn of each text whose end the network does not read."""
        for text in dict.fromkeys(texts):
            if cut := self.unread(text):
                message = f"CLIP does not read the end of {text!r}, and its scores ignore what is cut: {cut!r}"
                warnings.warn(message, stacklevel=1)  # at this line, so that a text is shown once, whoever asks

    @torch.no_grad()
    def _features(self, encode: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        # cuDNN's default for convolutions is TF32, whose rounding is larger than SMALLEST
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return _unit(encode(batch.to(self.device)).cpu())


@cache
def open_clip_scorer(path: str, model: str | None = None, device: str = "cpu") -> ClipScorer:
    """A CLIP of open_clip, ready for evaluation in float32.

    Pictures are prepared as the network was trained: on 8 bits by PIL, the short side to the network's size, the middle
    cut out, normalised.

    Args:
        path: one of
            a file of weights for `model`: .safetensors, a state dict in .pt, or OpenAI's own ViT-B-32.pt, which is a
            TorchScript program; torch.jit.load reads it, its tensors are taken, and the program does not run;
            a folder in open_clip's local-dir form: open_clip_config.json, open_clip_model.safetensors and, where the
            configuration names a tokenizer, its files;
            "hf-hub:" and the id of a repository of that form, or "openai" for `model` as OpenAI trained it: these are
            downloaded once.
        model: open_clip's name of the architecture of a single file, or of "openai"; of a folder or repository its
            configuration decides. Names that end in -quickgelu have another activation than those without, and nothing
            in a state dict says which is meant: OpenAI's networks have QuickGELU, most of LAION's have GELU. Pictures
            are prepared as OpenAI's.
        device: where it runs.

    Raises:
        ValueError: if there are no such weights, they do not fit, or what is known of them contradicts `model`.
    """
    with _quietly():
        name, files, label = _locate(path, model)
        state = _read(files[0])
        network, prepare, tokenize = _build(name, path)
        _fit(network, state, files[0], label)
    cfg = network.visual.preprocess_cfg
    size = cfg["size"] if isinstance(cfg["size"], int) else cfg["size"][0]
    how = f"pil-{'bilinear' if cfg['interpolation'] == 'bilinear' else 'bicubic'}{size}"
    how += "" if cfg["resize_mode"] == "shortest" else f"-{cfg['resize_mode']}"
    random = is_random(state.values())
    activation = "quickgelu" if any(type(part).__name__ == "QuickGELU" for part in network.modules()) else "gelu"
    known = label if label.endswith("-quickgelu") and activation == "quickgelu" else f"{label}-{activation}"
    protocol = f"{'RANDOM-' if random else ''}{known}-{file_digest(*files)}/{how}"
    network = network.to(device).eval().requires_grad_(False)
    return ClipScorer(protocol, prepare, network, tokenize, device, random, unread=partial(_unread, tokenize))


def _unread(tokenize: Callable[[list[str]], Tensor], text: str) -> str:
    """The end of a text that leaves its tokens as they are, where there is no room for more of them."""
    tokens = tokenize([text])
    if not tokens.equal(tokenize([f"{text} and more"])):
        return ""
    read = bisect_left(range(len(text)), True, key=lambda end: tokenize([text[:end]]).equal(tokens))
    return text[read:].strip()


def is_described(path: str) -> bool:
    """Whether a CLIP's own configuration says which architecture it has: a folder, or a repository of the hub."""
    return path.startswith(HUB) or Path(path).is_dir()


def is_openai(path: str) -> bool:
    """Whether weights are OpenAI's own, which have QuickGELU: by their name, or an archive in OpenAI's form."""
    return path == OPENAI or _is_torchscript(Path(path))


def _locate(path: str, model: str | None) -> tuple[str, list[Path], str]:
    """open_clip's name of it, the files that decide its numbers (the first holds weights), and its name for people."""
    if path.startswith(HUB):
        repository = path.removeprefix(HUB)
        return _local(_download(repository, path), path, repository.rpartition("/")[2])
    if is_described(path):
        return _local(Path(path), path, Path(path).resolve().name)
    if path != OPENAI and not Path(path).is_file():
        raise ValueError(
            f"there are no CLIP weights at {path}; give a file of weights, a folder with {CONFIG} and {WEIGHTS}, "
            f"{HUB}OWNER/NAME, or {OPENAI}"
        )
    if model is None:
        raise ValueError(
            f"{path} does not say which network it is of, and GELU and QuickGELU have the same tensors; name it by "
            "--clip-model or `model`: ViT-B-32-quickgelu (OpenAI's), ViT-B-32 (most of LAION's), …"
        )
    quick = bool(_configuration(model).get("quick_gelu", False))
    if is_openai(path) and not quick:
        raise ValueError(
            f"OpenAI's weights ({path}) were trained with QuickGELU, and {model} has another activation; choose "
            f"model={model}-quickgelu"
        )
    if path == OPENAI:
        return model, [_openai_repository(model, path) / WEIGHTS], model
    _require_activation(Path(path), model, quick)
    return model, [Path(path)], model


def _require_activation(file: Path, model: str, quick: bool) -> None:
    """Require that a file of weights that was taken out of a CLIP's folder has that folder's activation."""
    description = file.with_name(CONFIG)
    if file.name != WEIGHTS or not description.is_file():
        return
    try:
        said = bool(json.loads(description.read_bytes())["model_cfg"].get("quick_gelu", False))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{description} cannot be read; get it again, or move {file.name} elsewhere") from error
    if said != quick:
        named = {True: "QuickGELU", False: "GELU"}
        raise ValueError(
            f"{description} says that {file.name} has {named[said]}, and {model} has {named[quick]}; give the folder "
            f"{file.parent}, whose configuration decides"
        )


def _local(folder: Path, path: str, label: str) -> tuple[str, list[Path], str]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{path} has no {' and no '.join(missing)}; a CLIP folder holds {CONFIG}, {WEIGHTS} and, where the "
            "configuration names a tokenizer, its files"
        )
    return f"local-dir:{folder}", [folder / WEIGHTS, folder / CONFIG], label


def _configuration(model: str) -> dict[str, Any]:
    import difflib

    import open_clip

    config = open_clip.get_model_config(model) if ":" not in model else None
    if config is None:
        near = difflib.get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"open_clip has no model {model}; the nearest of its names are {', '.join(near) or 'none'}")
    return config


def _openai_repository(model: str, path: str) -> Path:
    import open_clip

    if OPENAI not in open_clip.list_pretrained_tags_by_model(model):
        known = [name for name, tag in open_clip.list_pretrained() if tag == OPENAI and "quickgelu" in name]
        raise ValueError(f"OpenAI published no {model}; choose one of {', '.join(known)}")
    return _download(open_clip.get_pretrained_cfg(model, OPENAI)["hf_hub"].rstrip("/"), path)


def _download(repository: str, path: str) -> Path:
    """The folder of a repository on the Hugging Face hub, in its cache; downloaded if need be."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS, "*token*", "vocab.*", "merges.txt"]))
    except (OSError, ValueError) as error:  # not there, no network, no such name
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{path} ({repository} on the Hugging Face hub) is not in the cache and cannot be downloaded ({reason}); "
            f"get {CONFIG} and {WEIGHTS} by other means and give their folder"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, on the CPU."""
    from safetensors.torch import load_file

    require_weights_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            content: Any = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content)
        state = {key.removeprefix("module."): value for key, value in content.items() if key not in CONSTANTS}
        if all(isinstance(value, Tensor) for value in state.values()):
            return state
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} is damaged or holds no weights; get it again") from error
    raise ValueError(f"{path} holds other things than tensors; give a state dict, best as .safetensors")


def _is_torchscript(path: Path) -> bool:
    return zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist())


def _build(name: str, path: str) -> tuple[Any, Callable[[Image.Image], Tensor], Callable[[list[str]], Tensor]]:
    """Network without its weights, preparation of pictures, and tokenizer."""
    import open_clip

    try:
        with torch.random.fork_rng(devices=[]):  # open_clip draws weights, which are then replaced
            made: Any = open_clip.create_model_and_transforms(name, load_weights=False, pretrained_text=False)
        tokenize: Any = open_clip.get_tokenizer(name)
        return made[0], made[2], tokenize
    except Exception as error:  # a wrong configuration can raise anything
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"open_clip cannot build a network from {path} ({reason}); correct its {CONFIG} or its tokenizer's files"
        ) from error


def _fit(network: Any, state: dict[str, Tensor], file: Path, label: str) -> None:
    """Load weights of exactly the network's names and shapes."""
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [key for key in sorted(own.keys() & state.keys()) if own[key].shape != state[key].shape]
    wrong = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    if any(wrong.values()):
        counts = "; ".join(f"{len(keys)} {what} ({keys[0]}, …)" for what, keys in wrong.items() if keys)
        raise ValueError(f"{file} does not fit {label}: {counts}; choose the model that these weights are of")
    require_finite(state, file)
    network.load_state_dict(state)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without open_clip's messages to the root logger and warnings about TorchScript."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)
