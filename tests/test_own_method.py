"""A method, and a metric of nothing else, from outside of this repository: CONTRIBUTING's "your own method"."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from .forking import finish

ROOT = Path(__file__).parents[1]
METHOD = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Brighter:
    amount: float
    name: str = "brighter"
    needs = frozenset({"target"})
    conditions = frozenset({"none"})
    starts_at = None
    inverts = False
    takes_region = False
    num_steps = 1

    def __call__(self, x0, source, target, noise):
        return x0 + self.amount + 0 * target(x0, target.schedule.at(0)).eps
"""
FILE = "_target_: my_methods.Brighter\nname: brighter\nneeds: [target]\nconditions: [none]\namount: 0.5\n"


def on_path(folder: Path) -> None:
    sys.path.insert(0, str(folder))


def run(tmp_path: Path) -> tuple[int, str]:
    """The exit code of a run, and what it prints."""
    few = [
        "data.limit=2",
        "task.reference_count=8",
        f"paths.outputs={tmp_path / 'out'}",
        f"paths.cache={tmp_path / 'cache'}",
    ]
    arguments = ["--config-dir", str(tmp_path / "conf"), "method=brighter", *few]
    return finish(arguments, tmp_path / "log.txt", partial(on_path, tmp_path / "code"), ROOT)


@pytest.fixture
def own(tmp_path):
    for folder, name, content in (("code", "my_methods.py", METHOD), ("conf/method", "brighter.yaml", FILE)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text(content)
    return tmp_path


def test_a_method_outside_of_the_repository(own):
    code, shown = run(own)
    assert code == 0, shown
    assert "brighter" in shown
    (record,) = [json.loads(path.read_bytes()) for path in own.glob("out/*/*/run.json")]
    assert record["costs"]["forwards_per_image"] == 1
    (own / "code" / "my_methods.py").write_text(METHOD.replace("self.amount +", "2 * self.amount +"))
    code, shown = run(own)
    assert code == 2
    assert "the code is now" in shown  # its module counts as code


@pytest.mark.parametrize(("old", "new", "words"), [
    ("needs: [target]", "needs: [source, target]", "says needs: [source, target], and Brighter declares [target]"),
    ("needs: [target]\n", "", "brighter.yaml does not say needs"),
    ("my_methods.Brighter", "my_method.Brighter", "my_method.Brighter cannot be imported"),
    ("amount: 0.5", "amont: 0.5", "Brighter has no setting amont"),
    ("amount: 0.5", "amount: much", "method.amount must be of type float"),
    ("conditions: [none]", "conditions: [text]", "choose method=cut, cyclediffusion, ddcm"),
])  # fmt: skip
def test_mistakes(own, old, new, words):
    (own / "conf" / "method" / "brighter.yaml").write_text(FILE.replace(old, new))
    code, shown = run(own)
    assert (code, shown.count("\n")) == (2, 1), shown
    assert words in shown
    assert not list(own.glob("out/*/*/run.json"))
