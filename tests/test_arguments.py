"""Values of the command line that are paths and names: taken as they are written, or the sentence shows the quotes."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cyclediff.cli.arguments import NEEDED, OPTIONAL, as_written, quoted, require_texts
from cyclediff.errors import UserError
from cyclediff.runtime.identity import flat, leaves, matches

from .forking import run
from .test_run import SMALL
from .test_untrusted_input import few
from .test_untrusted_settings import CONFIG, explained

WORDS = (  # settings with a few allowed words, or sentences: none of them is a path or a name
    "batch_size", "device", "dtype", "logger.mode", "noise.device", "selection.metric", "tier", "protocol.resize",
    "protocol.lpips.net", "paper.*", "*._target_", "*._convert_", "*.dtype", "*.spacing", "*.variance", "*.schedule",
    "*.attention_order", "*.timesteps", "*.attention.mode", "method.similarity_?",
    "method.source_path", "method.base", "method.masks", "method.guided_by", "method.sampler.kind",
    "study.weights", "data.fit", "*.direct_inversion.weights", "*.direct_inversion.blend", "*.attention.weights",
    "*.attention.blend",
)  # fmt: skip

NO_TEXT = (  # settings that are null, and otherwise a number, a word or a group
    "*.limit", "*.size", "*compile_mode", "tier", "selection", "*attention", "*.weights", "*.blend", "*.cooldown",
    "*.features", "*.clip", "*.lpips", "*.shorter", "study.sample_every", "selection.prune",
)  # fmt: skip


def parsed(argument):
    return OverridesParser.create().parse_override(argument)


@few
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12))
@example("a=b")
@example("it's")
@example('"')
@example("\\")
@example('\\"')
@example("a\\")
@example("#&([{,;!")
@example("2024")
def test_quotes_give_the_text_back(text):
    """Through the shell's quotes (shlex) and Hydra's parser."""
    if "${" in text or text.startswith("~"):
        return
    (argument,) = shlex.split(quoted(f"data.source={text}"))
    assert parsed(argument).value() == text


@pytest.mark.parametrize(
    "text",
    ["2024", "true", "False", "1e3", "1_000", "nan", "-5", "0.50", "[v2]", "{a:1}", "bücher", "фото", "熊 1", "007"],
)
@pytest.mark.parametrize("key", ["data.source", "+paths.data", "task.model.path", "task.name", "logger.project"])
def test_paths_and_names_are_taken_as_they_are_written(text, key):
    (argument,) = as_written([f"{key}={text}"])
    assert parsed(argument).value() == text


def test_a_sweep_over_names():
    (argument,) = as_written(["data.source=2024,фото,x,true"])
    sweep: Any = parsed(argument).value()
    assert [str(getattr(value, "text", value)) for value in sweep.list] == [
        "2024",
        "фото",
        "x",
        "true",
    ]


@pytest.mark.parametrize(
    "argument",
    ["seed=2024", "method.eta=1e3", "seed=1,2", "profile=true", "data.limit=3", "data.source='a b'", "-m", "doctor",
     "data.source=x", 'data.source="2024"', "data.source=null", "data.source=a=b", "method=sdedit,ilvr", "~tier",
     "task.source=${paths.data}", "method=[a,b]", "/a/folder=here", "data.source=glob(*)", "data.source=choice(1,2)"],
)  # fmt: skip
def test_everything_else_stays(argument):
    assert as_written([argument]) == [argument]


def test_the_name_of_a_choice():
    assert as_written(["method=2024", "experiment=null"]) == ['method="2024"', "experiment=null"]


def test_a_comma_in_the_name_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_written(["data.source=a,b"]) == ["data.source=a,b"]
    (tmp_path / "a,b").mkdir()
    with pytest.raises(UserError) as refusal:
        as_written(["data.source=a,b"])
    assert str(refusal.value) == (
        "data.source=a,b means a run with each of a and b, and a,b is there, too; write 'data.source=\"a,b\"' for that "
        "one"
    )


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("a=b", """'data.source="a=b"'"""),
        ("gen[v2]", """'data.source="gen[v2]"'"""),
        ("a(1)", """'data.source="a(1)"'"""),
        ("a&b", """'data.source="a&b"'"""),
        ("a#b", """'data.source="a#b"'"""),
        ("a{b}", """'data.source="a{b}"'"""),
        ("a~b", """'data.source="a~b"'"""),
        ("фото (1)", """'data.source="фото (1)"'"""),
        ("it's", """'data.source="it'"'"'s"'"""),
        ('say "hi"', r"""'data.source="say \"hi\""'"""),
        ("~/photos", """'data.source="/home/me/photos"'"""),
    ],
)
def test_what_needs_quotes_is_shown_with_them(value, right, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert explained([f"data.source={value}"]) == (
        f"error: the value of data.source, {value}, has characters that mean something else here; as text, write "
        f"{right}"
    )


def test_a_comma_without_a_sweep():
    assert explained(["data.source=a,b"]) == (
        "error: data.source=a,b has a comma; write 'data.source=\"a,b\"' if that is one value, or add --multirun for a "
        "run with each part"
    )


def test_a_comma_is_not_blamed_for_another_mistake():
    assert "there is no experiment named cat2dgo" in explained(["experiment=cat2dgo", "method=ilvr,sdedit"])
    assert "data.source=a,b has a comma" in explained(["hydra.mode=RUN", "data.source=a,b"])
    assert "selection has no setting grdi" in explained(["experiment=pets_edit", "seed=1,2", "selection.grdi=1"])


def test_every_text_is_a_path_or_a_name_or_one_of_a_few_words():
    """A new setting with a text is found here: it belongs to NEEDED or OPTIONAL if it is a path or a name."""
    found = {}
    for path in Path(CONFIG, "method").glob("*.yaml"):
        node: Any = OmegaConf.to_container(OmegaConf.load(path))
        found |= {key: value for key, value in flat(node, "method.").items() if not str(value).startswith("${")}
    for path in Path(CONFIG, "experiment").glob("*.yaml"):
        GlobalHydra.instance().clear()
        with initialize_config_dir(CONFIG, version_base=None):
            cfg = compose("config", [f"experiment={path.stem}", "logger=wandb"])
        found |= leaves(cfg)
        require_texts(cfg)
    texts = {key for key, value in found.items() if isinstance(value, str)}
    assert {key for key in texts if not matches(key, (*NEEDED, *OPTIONAL, *WORDS))} == set()
    assert {key for key in texts if matches(key, WORDS) and matches(key, (*NEEDED, *OPTIONAL))} == set()
    nothing = {key for key, value in found.items() if value is None and not matches(key, (*OPTIONAL, *NO_TEXT))}
    assert nothing == set()
    numbers = {key for key, value in found.items() if isinstance(value, int | float)}
    assert {key for key in numbers if matches(key, (*NEEDED, *OPTIONAL))} == set()


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("data.source", 2024, """data.source must be text; got 2024; if that is a name, write 'data.source="2024"'"""),
        ("data.source", True, """data.source must be text; got true; if that is a name, write 'data.source="true"'"""),
        ("paths.data", None, """paths.data must be text; got null; if that is a name, write 'paths.data="null"'"""),
        ("data.source", " ", "data.source is empty; write data.source=VALUE"),
        ("data.reference", "", "data.reference is empty; write data.reference=VALUE, or data.reference=null for none"),
    ],
)
def test_what_is_no_text(key, value, sentence):
    """However it came there: a file of configuration is not read by `as_written`."""
    cfg = OmegaConf.create({"data": {"source": "x", "reference": None}, "paths": {"data": "y"}})
    require_texts(cfg)
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError) as refusal:
        require_texts(cfg)
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("mode", ["RUN", "MULTIRUN"])
def test_a_run_of_a_folder_that_looks_like_a_number(mode, tmp_path):
    """Up to the folder: it is not there, and its name is what was written."""
    row = [SMALL, "method=sdedit", f"hydra.mode={mode}", "data.source=1_000", f"paths.outputs={tmp_path / 'out'}"]
    done = run(*row, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: 1_000 does not exist or is no folder; give a folder of images\n"
