"""One part of a folder or hub repository in diffusers' layout: a network that fits its file, or a sentence."""

import inspect
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cyclediff.errors import UserError
from cyclediff.models.single_file import SingleFile, build
from eval.weight_files import disguise, require_finite

SAFE = (
    "DiffusionPipeline.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) with a diffusers that you trust writes them"
)
SHOWN = 3
NAMES = ("diffusion_pytorch_model.", "diffusion_pytorch_model-", "model.", "model-")  # of files that are read
SHARD = re.compile(r"-\d+(-of-\d+)")
WEIGHTS = re.compile(r"(safetensors|\.bin)\b")
OF_AVERAGE = {  # what diffusers' EMAModel adds to the configuration of a network
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
}  # fmt: skip


@dataclass(frozen=True)
class Repository:
    """Where the parts of a model are.

    Args:
        path: a folder, or the id of a repository of the Hugging Face hub.
        revision: commit, branch or tag of a hub id; None for its main branch. A folder has none.
        variant: of the weights' files: "fp16" for `model.fp16.safetensors`; None for those without a variant.
        file: the weights of all networks, where they are in one file; the rest is at `path`.
    """

    path: str
    revision: str | None = None
    variant: str | None = None
    file: SingleFile | None = None

    @property
    def hub(self) -> dict[str, Any]:
        """Arguments of the libraries' functions that read a configuration."""
        return {"revision": self.revision} if self.revision else {}

    @property
    def is_folder(self) -> bool:
        """Whether it is here."""
        return Path(self.path).is_dir()


def load_config(cls: Any, repository: Repository, folder: str) -> dict[str, Any]:
    """The configuration of a part that diffusers reads, as it is written."""
    config: Any = cls.load_config(repository.path, subfolder=folder, **repository.hub)
    return dict(config[0] if isinstance(config, tuple) else config)


def load_part(
    cls: Any, repository: Repository, folder: str, ignored: Sequence[str] = (), class_named: bool = True
) -> Any:
    """A network in float32, with nothing missing, left over, of another shape or not finite.

    Args:
        cls: class of diffusers or transformers.
        repository: of the model.
        folder: of the part.
        ignored: beginnings of names that the file may hold beside the network.
        class_named: whether the configuration must name `cls`, as diffusers writes it.

    Raises:
        UserError: if the file does not fit its configuration, or is none.
    """
    where = f"{repository.path}/{folder}" if folder else repository.path
    config = load_config(cls, repository, folder) if class_named else repository.path
    if not isinstance(config, str):
        _require_known_settings(cls, config, where)
    if repository.file is not None:
        network = build(cls, config, repository.hub, folder)
        where = f"{repository.file.path} for {folder}"
        _require_fit(_load_state(network, repository.file.part(network, folder)), where, ignored)
        with as_user_error():
            require_finite(network.state_dict(), where)
        return network
    if repository.is_folder:
        _require_whole_files(Path(repository.path, folder), repository.variant)
    settings = {"low_cpu_mem_usage": False} if class_named else {}  # True needs the package accelerate
    network, info = cls.from_pretrained(
        repository.path, subfolder=folder, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True,
        ignore_mismatched_sizes=True, variant=repository.variant, **settings, **repository.hub,
    )  # fmt: skip
    _require_fit(info, where, ignored)
    with as_user_error():
        require_finite(network.state_dict(), where)
    return network


def _require_known_settings(cls: Any, config: Mapping[str, Any], where: str) -> None:
    """Require that a configuration is of a class of diffusers, which ignores the settings that it does not know."""
    named = config.get("_class_name")
    if named not in (None, cls.__name__):
        raise UserError(f"{where} is a {named}; a {cls.__name__} belongs there")
    known = OF_AVERAGE | set(inspect.signature(cls.__init__).parameters)
    unknown = [key for key, value in config.items() if key not in known and not key.startswith("_") and value]
    if unknown:
        raise UserError(
            f"{where}/config.json has settings that diffusers' {cls.__name__} does not know: "
            f"{', '.join(sorted(unknown))}; get a newer diffusers, or remove those that change nothing"
        )


@contextmanager
def as_user_error() -> Iterator[None]:
    """A ValueError of the checks of `eval` as the user's."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars and log messages of the libraries."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = diffusers_logging, transformers_logging
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    diffusers_logging.set_verbosity(logging.CRITICAL)  # its errors are raised, too
    transformers_logging.set_verbosity_error()
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()


@contextmanager
def one_sentence(repository: Repository, kind: str) -> Iterator[None]:
    """Turn whatever the libraries raise into one sentence that says what to do.

    Args:
        repository: of the model.
        kind: what was expected, in words.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a wrong configuration can raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if repository.is_folder:
            raise UserError(f"{repository.path} is no complete {kind} ({reason}); get it again") from error
        if "does not appear to have a file named" in reason and WEIGHTS.search(reason):
            raise UserError(
                f"{repository.path} is no {kind} with safetensors ({reason.split('. ')[0]}); {SAFE}, or set variant "
                "where it has them under another name, such as variant=fp16"
            ) from error
        raise UserError(
            f"{repository.path} is no folder here and could not be downloaded from the hub; check the name and the "
            f"connection, or name a folder: task.model.path=FOLDER ({reason.split('. ')[0]})"
        ) from error


def whole_number(config: Mapping[str, Any], key: str, where: str) -> int:
    """A size that a configuration states, also where it states it for height and width.

    Raises:
        UserError: if it does not state one.
    """
    value = config.get(key)
    values = set(value) if isinstance(value, list | tuple) else {value}
    if len(values) != 1 or not isinstance(only := values.pop(), int) or isinstance(only, bool) or only < 1:
        raise UserError(f"{where}/config.json must state {key} as one whole number; it states {value}")
    return only


def require_absent(config: Mapping[str, Any], keys: Collection[str], where: str, instead: str) -> None:
    """Require that a network has no condition that models here do not give it.

    Raises:
        UserError: if it has one.
    """
    for key in keys:
        if config.get(key) is not None:
            raise UserError(f"{where} needs a condition that is not given here ({key}: {config[key]}); {instead}")


def _require_whole_files(folder: Path, variant: str | None) -> None:
    """Look at the files before a library does: it does not name the one that is damaged."""
    files = sorted(folder.glob("*.safetensors"))
    chosen = [path for path in files if _variant(path) == variant]
    if not chosen:
        others = sorted({str(_variant(path)) for path in files})
        if not others:
            raise UserError(f"{folder} holds no safetensors; {SAFE}")
        if None in map(_variant, files):
            raise UserError(f"{folder} holds no weights of the variant {variant}; leave it out: variant=null")
        raise UserError(
            f"{folder} holds its weights in the variant {' and '.join(others)} only; ask for it: "
            f"variant={others[0]} in the model's configuration"
        )
    sets = sorted({SHARD.sub(r"-*\1", path.name) for path in chosen if path.name.startswith(NAMES)})
    if len(sets) > 1:
        raise UserError(f"{folder} holds its weights more than once ({', '.join(sets)}); keep those that are meant")
    for path in chosen:
        if found := disguise(path):
            raise UserError(f"{path} {found}")
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise UserError(f"{path} is truncated or damaged; get it again") from error


def _variant(path: Path) -> str | None:
    """fp16 of model.fp16.safetensors and of model.fp16-00001-of-00002.safetensors."""
    _, *middle = path.name.removesuffix(".safetensors").split(".")
    return ".".join(middle).partition("-")[0] or None


def _load_state(network: Any, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Load what fits; what does not is said as diffusers says it of a folder."""
    own = network.state_dict()
    wrong = [key for key, value in state.items() if key in own and own[key].shape != value.shape]
    missing, unexpected = network.load_state_dict(
        {key: value for key, value in state.items() if key not in wrong}, strict=False
    )
    return {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": wrong}


def _require_fit(info: Mapping[str, Any], where: str, ignored: Sequence[str]) -> None:
    """Require that a library used every tensor of a file for every tensor of a network."""
    unexpected = {key for key in info["unexpected_keys"] if not key.startswith(tuple(ignored))}
    shapes = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    faults = {"missing": set(info["missing_keys"]) - shapes, "unexpected": unexpected, "of another shape": shapes}
    found = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:SHOWN])}{', …' * (len(keys) > SHOWN)})"
        for what, keys in faults.items()
        if keys
    ]
    if found:
        prefix = _prefix(faults["missing"], unexpected)
        advice = f"take {prefix!r} off its names" if prefix else "get it again, or the config.json that belongs to it"
        raise UserError(f"the weights in {where} do not fit its config.json: {'; '.join(found)}; {advice}")


def _prefix(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    """What is in front of every missing name among those that are left over, if that is one text."""
    first = min(missing, default="")
    for key in unexpected:
        prefix = key.removesuffix(first)
        if first and prefix != key and {prefix + name for name in missing} <= set(unexpected):
            return prefix
    return None
