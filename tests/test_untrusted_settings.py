"""Untrusted settings: a method, or one sentence."""

import contextlib
import io
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints
from unittest import mock

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cyclediff.cli.errors import reported
from cyclediff.errors import UserError
from cyclediff.runtime.settings import build

from .test_untrusted_input import few, sentence

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "conf")
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml") if path.stem != "unguided")
ANYTHING = st.one_of(
    st.integers(),
    st.integers(-3, 1100),
    st.integers(min_value=10**300),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=9),
    st.lists(st.integers(), max_size=2),
)


@pytest.fixture(scope="module")
def methods():
    """Class and valid settings of every method, as run.py makes them."""
    found = {}
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG, version_base=None):
        for name in METHODS:
            task = "pets_edit" if name.endswith("_cac") else "pets_cat2dog"
            cfg = compose("config", [f"experiment={task}", f"method={name}"])
            node = OmegaConf.to_container(cfg.method, resolve=True)
            needs, _ = node.pop("needs"), node.pop("conditions")
            cls = get_class(node.pop("_target_"))
            node["attention"] = None
            node |= {part: part for part in needs}  # networks, which are not looked at
            for key, value in node.items():
                if isinstance(value, dict) and "_target_" in value:
                    node[key] = get_class(value.pop("_target_"))(**value)
            known = {field.name for field in fields(cls)}
            found[name] = cls, {key: value for key, value in node.items() if key in known}
    return found


@pytest.mark.parametrize("name", METHODS)
def test_the_published_settings_are_valid(name, methods):
    cls, valid = methods[name]
    assert build(cls, valid) == cls(**valid)


@pytest.mark.parametrize("name", METHODS)
def test_any_value_of_a_number_makes_a_method_or_a_sentence(name, methods):
    cls, valid = methods[name]
    if not any(kind in (int, float, bool) for kind in get_type_hints(cls).values()):
        cls, valid = type(valid["training"]), vars(valid["training"])  # a generator's numbers are those of its training
    numbers = [key for key, kind in get_type_hints(cls).items() if kind in (int, float, bool) and key in valid]
    assert numbers

    @few
    @given(st.sampled_from(numbers), ANYTHING)
    @example(numbers[0], float("nan"))
    @example(numbers[0], 10**400)
    def check(key, value):
        try:
            made = build(cls, valid | {key: value})
        except UserError as error:
            sentence(error)
        else:
            kept = getattr(made, key)
            assert kept == value or kept != kept
            assert isinstance(kept, bool) == isinstance(valid[key], bool)

    check()


def explained(overrides):
    """What the command line prints for a mistake in it; None where there is none."""
    GlobalHydra.instance().clear()
    printed, code = io.StringIO(), None
    with mock.patch.object(sys, "argv", ["run.py", *overrides]), contextlib.redirect_stderr(printed):
        try:
            with reported(CONFIG), initialize_config_dir(CONFIG, version_base=None):
                compose("config", overrides)
        except SystemExit as end:
            code = end.code
    assert (code, printed.getvalue()[:7]) in ((None, ""), (2, "error: "))
    return code and sentence(printed.getvalue().removesuffix("\n"))


@settings(few, max_examples=12)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.builds(
            "{}{}={}".format,
            st.sampled_from(["", "+", "~", "++"]),
            st.sampled_from(["method", "method.eta", "task", "data", "seed", "hydra.mode", "paths.x", "a.b.c", "@"]),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        ),
    )
)
@example("method=")
@example("method=../../etc/passwd")
@example("=")
@example("method.eta=${nothing}")
@example("data.limit=${oc.env:NO_SUCH}")
@example("seed=[1")
@example("\n")
@example("method=a\nb")
@example("+=")
def test_any_override_is_taken_or_explained_in_one_sentence(override):
    explained([override])


def test_overrides_are_explained():
    """The sentences are about the mistake, so the test above checks something."""
    assert "there is no method named nothing" in explained(["method=nothing"])
    assert "has no setting etaa" in explained(["method.etaa=1"])
    assert "is not a setting" in explained(["seed"])
