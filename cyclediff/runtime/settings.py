"""Settings of the configuration: numbers in range, objects with the right types, and mistakes as one sentence."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

from hydra.errors import InstantiationException
from omegaconf import DictConfig

from cyclediff.errors import UserError


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a ValueError of code that knows nothing of this program into a mistake of its user."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error
    except InstantiationException as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        raise UserError(str(error.__cause__)) from error


def require_whole_number(cfg: DictConfig, key: str, least: int, word: str | None = None) -> None:
    """Require a whole number.

    Raises:
        UserError: if the setting is anything else, or less than `least`, and not `word`.
    """
    value = cfg
    for part in key.split("."):
        value = value[part]
    if word is not None and value == word:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        allowed = f"a whole number of at least {least}{f', or {word}' if word else ''}"
        raise UserError(f"{key} must be {allowed}; got {value}")


def build(cls: type, settings: dict[str, Any], place: str = "method") -> Any:
    """Make a method, or what else has settings in `place`, with their types checked against its annotations.

    Raises:
        UserError: if a setting is unknown, missing, of another type or outside its range.
    """
    hints = get_type_hints(cls)
    unknown = sorted(settings.keys() - hints.keys())
    if unknown:
        raise UserError(f"{cls.__name__} has no setting {unknown[0]}; choose from {', '.join(hints.keys() - {'name'})}")
    for key, kind in hints.items():
        allowed = (int, float) if kind is float else kind
        if key in settings and kind in (int, float, bool, str):
            wrong = not isinstance(settings[key], allowed) or (isinstance(settings[key], bool) and kind is not bool)
            if wrong:
                raise UserError(f"{place}.{key} must be of type {kind.__name__}; got {settings[key]!r}")
            if kind is float and not abs(settings[key]) <= sys.float_info.max:
                raise UserError(f"{place}.{key} must be a finite number; got {settings[key]}")
    try:
        return cls(**settings)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
