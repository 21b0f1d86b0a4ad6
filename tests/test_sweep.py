"""How many runs a command line asks for, and what a person sees of them."""

import pytest

from cyclediff.cli.sweep import count_runs

from .forking import run

PARAMS = {"method": "cyclediffusion,sdedit,ddib", "seed": "1,2"}


@pytest.mark.parametrize(("arguments", "count"), [
    ([], 6), (["method=sdedit"], 2), (["method=sdedit,ddib", "seed=5"], 2), (["method.eta=range(0,3)"], 18),
    (["selection.grid.skip=[1,2]", "--config-dir=x", "-m"], 6), (["experiment=pets_edit", "dtype=choice(a,b)"], 12),
])  # fmt: skip
def test_runs_are_counted(arguments, count):
    assert count_runs(PARAMS, arguments) == count


def test_each_run_says_which_it_is(tmp_path):
    small = ("data.limit=2", "task.reference_count=8", "steps=few", f"paths.outputs={tmp_path}")
    done = run("method=sdedit,cut", *small)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("run ")] == [
        "run 1 of 2: sdedit", "run 2 of 2: cut",
    ]  # fmt: skip
    alone = run("hydra.mode=RUN", "method=sdedit", *small)
    assert "run 1" not in alone.stdout
