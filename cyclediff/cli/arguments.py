"""Settings whose values are text: taken as they are written at a shell, or a sentence that shows the quotes."""

import json
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from cyclediff.data.assets import ROOT, locate
from cyclediff.errors import UserError
from cyclediff.runtime.identity import flat, matches

NEEDED = (  # patterns of settings that are paths or names; Hydra would make numbers of some: 2024, 1e3, true
    "paths.*",
    "data.source",
    "*.name",
    "*.folder",
    "*_split",
    "*_domain",
    "logger.project",
)
OPTIONAL = (  # the same, where null is a value, too
    "data.reference",
    "task.source",
    "task.reference",
    "task.train_*",
    "study.source",
    "study.target",
    "*.path",
    "*.suffix",
    "*.state_dict",
    "*.variant",
    "task.model.config",
    "task.model.lora",
    "*clip.model",
    "*vit.model",
    "protocol.*.model",
    "task.generators.*",
    "method.training.*_text",
    "task.settings.*_text",
    "task.texts.*",
    "task.target_image",
    "task.tuned.*",
    "protocol.judge",
    "method.mask",
    "method.best_by",
    "task.text",
    "logger.entity",
)
ARGUMENT = re.compile(r"([+~]{0,2}[A-Za-z_][\w./@-]*)=(.*)", re.DOTALL)
INSIDE = set("\"'()[]{}")  # where these are, a comma may be part of a value


def as_written(arguments: Sequence[str]) -> list[str]:
    """Arguments for Hydra: what would become a number, truth value, list or object, and is a path or a name, in quotes.

    Letters beyond ASCII, which Hydra takes in quotes only, get quotes as well.

    Raises:
        UserError: if a value with a comma means a sweep, and is also the name of something that is there.
    """
    return [_as_written(argument) for argument in arguments]


def quoted(argument: str) -> str | None:
    """What to type at a shell so that the value of an argument is taken as text; None where it is no KEY=VALUE.

    A value that begins with ~/ gets the home folder, as no shell puts it in here.
    """
    found = ARGUMENT.fullmatch(argument)
    if not found:
        return None
    key, value = found.groups()
    return shlex.quote(f"{key}={_in_quotes(os.path.expanduser(value))}")


def is_sweep(argument: str) -> bool:
    """Whether an argument means several runs."""
    override = _parsed(argument)
    return override is not None and override.is_sweep_override()


def require_texts(cfg: DictConfig) -> None:
    """Require text for every setting that is a path or a name, wherever its value comes from.

    Raises:
        UserError: if one is empty, a number, a list, or null where there must be something.
    """
    content: Any = OmegaConf.to_container(cfg)  # a reference is text; what it leads to is looked at as well
    for key, value in flat(content).items():
        needed = matches(key, NEEDED)
        if not (needed or matches(key, OPTIONAL)) or (value is None and not needed):
            continue
        if not isinstance(value, str):
            shown = json.dumps(value, ensure_ascii=False, default=str)  # as Hydra writes it
            raise UserError(f"{key} must be text; got {shown}; if that is a name, write {quoted(f'{key}={shown}')}")
        if not value.strip():
            raise UserError(f"{key} is empty; write {key}=VALUE{'' if needed else f', or {key}=null for none'}")


def _as_written(argument: str) -> str:
    found, override = ARGUMENT.fullmatch(argument), _parsed(_ascii(argument))
    if not found or override is None:
        return argument
    key, value = found.groups()
    kinds: tuple[type, ...] = ()  # what is taken as text
    if matches(key.lstrip("+~"), (*NEEDED, *OPTIONAL)):
        kinds = (int, float, list, dict)
    elif (ROOT / "conf" / key.lstrip("+~").split("@")[0]).is_dir():  # a group; its value is a file's name
        kinds = (int, float)
    if override.value_type == ValueType.ELEMENT:
        return f"{key}={_element(value, kinds)}"
    if override.value_type != ValueType.SIMPLE_CHOICE_SWEEP or INSIDE & set(value):
        return argument
    if list in kinds and locate(value).exists():
        raise UserError(
            f"{argument} means a run with each of {' and '.join(value.split(','))}, and {value} is there, too; write "
            f"{quoted(argument)} for that one"
        )
    return f"{key}={','.join(_element(part, kinds) for part in value.split(','))}"


def _element(value: str, kinds: tuple[type, ...]) -> str:
    """A value, in quotes where Hydra would make one of these kinds of it, or does not take its letters."""
    override = _parsed(f"key={_ascii(value)}")
    if override is None:
        return value
    other = isinstance(override.value(), kinds) or (not value.isascii() and _parsed(f"key={value}") is None)
    return _in_quotes(value) if other else value


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _ascii(text: str) -> str:
    return re.sub(r"[^\x00-\x7f]", "x", text)


def _in_quotes(value: str) -> str:
    return QuotedString(value, Quote.double).with_quotes()
