"""Mistakes on the command line: one sentence for each, which says what exists."""

import difflib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cyclediff.cli import arguments
from cyclediff.errors import UserError
from cyclediff.runtime import distributed, stop
from eval import terminal

AMBIGUOUS = "Ambiguous value for argument '(.*?)'\n"  # in Hydra's message


@contextmanager
def reported(config_dir: str) -> Iterator[None]:
    """End the program with one sentence and exit code 2 where its user can correct what is wrong.

    Of several processes one prints it, and all end. That holds for errors with a traceback, too. What the terminal
    cannot show is replaced.

    Args:
        config_dir: the folder of the configuration, to say what could have been written.
    """
    terminal.adapt_output()
    try:
        yield
    except UserError as error:
        fail(str(error))
    except InstantiationException as error:
        if not isinstance(error.__cause__, UserError):
            distributed.end_by_error(error)
        fail(str(error.__cause__))
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error, sys.argv[1:], config_dir))
    except OSError as error:
        place = error.filename or "writing"
        fail(f"{place}: {error.strerror}; finished images are kept, paths.outputs=DIR writes elsewhere")
    except KeyboardInterrupt:
        fail(stop.STOPPED, code=130)
    except stop.Stopped as stopped:
        distributed.end(str(stopped), code=0)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError | AssertionError) and "/hydra/" in frames[-1].filename:
            reason = " ".join(str(error).split())
            why = f" ({reason})" if reason else ""
            fail(f"the command line is not understood{why}; write KEY=VALUE, for example method=sdedit")
        distributed.end_by_error(error)


def fail(sentence: str, code: int = 2) -> NoReturn:
    """Print why there is no result, and end the program."""
    distributed.end(f"error: {sentence}", code)


def explain(error: Exception, overrides: list[str], config_dir: str) -> str:
    """One sentence for an error of Hydra or OmegaConf."""
    if isinstance(error, MissingConfigException) and error.options:
        name = str(error.missing_cfg_file)
        group, _, option = name.rpartition("/")
        return f"there is no {group} named {option}; choose {listed(option, error.options)}"
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        right = arguments.quoted(str(error.override))
        if right is None or not value or not right.isprintable():
            return f"{error.override!r} is not a setting; write KEY=VALUE, for example method=sdedit"
        return f"the value of {key}, {value}, has characters that mean something else here; as text, write {right}"
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        for override in overrides:
            unknown = _unknown_key(override, overrides, config_dir)
            if unknown:
                return unknown
    if found := re.search(AMBIGUOUS, str(error), re.DOTALL):
        single = [override for override in overrides if not arguments.is_sweep(override)]
        cause = _composition_error(single, config_dir)  # Hydra takes the mode of a configuration with a mistake for RUN
        if cause:
            return explain(cause, single, config_dir)
        right = arguments.quoted(found[1])
        return f"{found[1]} has a comma; write {right} if that is one value, or add --multirun for a run with each part"
    return " ".join(str(error).split())


def _composition_error(overrides: list[str], config_dir: str) -> Exception | None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir, version_base=None):
        try:
            compose("config", overrides)
        except (HydraException, OmegaConfBaseException) as error:
            return error
    return None


def _unknown_key(override: str, overrides: list[str], config_dir: str) -> str | None:
    """The sentence for an override whose key is not in the configuration, if that is what is wrong with it."""
    try:
        key = OverridesParser.create().parse_override(override).key_or_group
    except HydraException:
        return None
    if Path(config_dir, key.split("@")[0]).is_dir() or key.startswith("hydra."):
        return None  # a group, or a setting of Hydra: its own message says what is wrong with it
    groups = [o for o in overrides if Path(config_dir, o.lstrip("+~").split("=")[0].split("@")[0]).is_dir()]
    chosen = [o.split(",")[0] for o in groups]  # of a sweep's values the first
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir, version_base=None):
        try:
            node: Any = compose("config", chosen)
        except (HydraException, OmegaConfBaseException):
            return None
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig) or part not in node:
            where = ".".join(parts[:depth])
            names = [str(name) for name in node] if isinstance(node, DictConfig) else []
            place = f"{where} has no setting {part}" if where else f"there is no setting {part}"
            return f"{place}; choose {listed(part, names)}" if names else f"{where} has no settings of its own"
        node = node[part]
    return None


def listed(given: str, names: Iterable[str]) -> str:
    """All names, and the one that is close to what was given, for a sentence."""
    names = sorted(names)
    close = difflib.get_close_matches(given, names, n=1)
    return f"one of {', '.join(names)}" + (f" (did you mean {close[0]}?)" if close else "")
