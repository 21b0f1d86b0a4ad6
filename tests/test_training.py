"""The trainer: the same weights however often it is stopped, and one sentence for what cannot go on."""

import errno
import json
import shutil
from collections import namedtuple

import pytest
import torch
from torch import nn

import eval.files
from cyclediff.errors import UserError
from cyclediff.runtime import stop
from cyclediff.runtime.rates import half_cosine, moving_average
from cyclediff.runtime.training import Training, train

STEPS = 12


class Killed(Exception):
    pass


def task(steps=STEPS, lr=0.01, killed_at=None, spoiled_at=None, spoil="loss", **changed) -> Training:
    """A line is fitted to drawn points, by a network with dropout; a second one only learns from the first."""
    torch.manual_seed(3)
    networks = {"line": nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)), "other": nn.Linear(1, 1)}
    optimizers = {
        "line": torch.optim.AdamW(networks["line"].parameters(), lr),
        "other": torch.optim.SGD(networks["other"].parameters(), lr, momentum=0.9),
    }
    rng = torch.Generator().manual_seed(5)

    def step(number, update):
        if number == killed_at:
            raise Killed
        x = torch.randn(6, 4, generator=rng)
        made = networks["line"](x)
        loss = (made - x.sum(1, keepdim=True)).square().mean()
        if number == spoiled_at and spoil == "loss":
            loss = loss * float("nan")
        update("line", loss)
        second = (networks["other"](made.detach()) - 1).square().mean()
        update("other", second)
        if number == spoiled_at and spoil == "weight":
            networks["other"].weight.data.fill_(float("inf"))
        return {"line": loss.detach(), "other": second.detach()}

    settings = {"seed": 5, "data": {"name": "points"}}
    more = {"generators": {"data": rng}, "averages": {"line": 0.9}, "rate": half_cosine(steps), "clip": 1.0}
    how = more | {"checkpoint_every": 4, "row_every": 3, "settings": settings} | changed
    return Training(networks=networks, optimizers=optimizers, step=step, steps=steps, **how)


def weights(trained):
    return torch.cat([p.flatten() for network in trained.networks.values() for p in network.parameters()])


@pytest.fixture
def whole(tmp_path):
    return train(task(), tmp_path / "whole", "points")


def losses(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.mark.parametrize("killed_at", [2, 4, 9])
def test_a_killed_training_continues_to_the_same_weights(killed_at, whole, tmp_path):
    with pytest.raises(Killed):
        train(task(killed_at=killed_at), tmp_path, "points")
    assert (tmp_path / "checkpoint.pt").is_file() == (killed_at >= 4)
    torch.rand(7)  # the random state is that of the checkpoint, not this one
    again = train(task(), tmp_path, "points")
    assert weights(again).equal(weights(whole))
    assert losses(again.history) == losses(whole.history)
    assert json.loads((tmp_path / "history.json").read_text()) == again.history
    assert [row["step"] for row in again.history] == [3, 6, 9, 12]


def test_a_finished_training_is_not_made_again(whole, tmp_path):
    again = train(task(killed_at=0), tmp_path / "whole", "points")
    assert weights(again).equal(weights(whole))
    assert again.history[-1]["step"] == STEPS


def test_it_learns(tmp_path):
    history = train(task(steps=300, lr=0.05, row_every=50, checkpoint_every=300), tmp_path, "points").history
    assert history[-1]["line"] < 0.6 * history[0]["line"]


def test_averages_are_those_of_the_formula(tmp_path):
    """A moving average of all steps' weights, from the first step's on."""
    seen = []
    how = task(steps=5, clip=None)
    network, step = how.networks["other"], how.step

    def watched(number, update):
        found = step(number, update)
        seen.append(network.weight.detach().clone())
        return found

    trained = train(Training(**vars(how) | {"step": watched, "averages": {"other": 0.5}}), tmp_path, "points")
    expected = seen[0]
    for count, value in enumerate(seen[1:], start=1):
        weight = max(0.5, 9 / (10 + count))
        expected = (1 - weight) * expected + weight * value
    torch.testing.assert_close(trained.networks["other"].weight, expected)
    assert trained.networks["line"] is how.networks["line"]


CHANGES = {
    "lr": ({"lr": 0.02}, "optimizer.line.0.lr was 0.01, is 0.02"),
    "steps": ({"steps": 13, "rate": lambda i: 1.0}, "training.steps was 12, is 13"),
    "settings": ({"settings": {"seed": 5, "data": {"name": "others"}}}, "data.name was points, is others"),
    "absent": ({"settings": {"seed": 5}}, "data.name was points, is absent"),
    "clip": ({"clip": None}, "training.clip was 1.0, is None"),
    "average": ({"averages": {"line": 0.99}}, "training.averages.line was 0.9, is 0.99"),
    "rate": ({"rate": lambda i: 1.0}, "training.rates was 1 0.982963 0.853553"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_settings_are_refused_and_named(change, whole, tmp_path):
    changed, sentence = CHANGES[change]
    with pytest.raises(UserError, match="belongs to a training with other settings") as error:
        train(task(**changed), tmp_path / "whole", "points")
    assert sentence in str(error.value)
    assert str(error.value).endswith("restore them, or delete it to start again")


def test_another_network_is_refused(whole, tmp_path):
    how = task()
    how.networks["line"].add_module("more", nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"network.line was 49 values, \w+, is 51 values, \w+"):
        train(how, tmp_path / "whole", "points")


@pytest.mark.parametrize(("spoiled_at", "kept"), [(2, "no checkpoint was written before"), (9, "of step 8 is kept")])
def test_a_loss_that_is_not_finite_stops_it(spoiled_at, kept, whole, tmp_path):
    sentence = f"the loss of the line is NaN or Inf at step {spoiled_at + 1} of 12; .*{kept}, so try a smaller"
    with pytest.raises(UserError, match=sentence):
        train(task(spoiled_at=spoiled_at), tmp_path, "points")
    assert weights(train(task(), tmp_path, "points")).equal(weights(whole))  # from the last good one


def test_weights_that_are_not_finite_are_not_kept(whole, tmp_path):
    with pytest.raises(UserError, match="a weight is NaN or Inf after step 8 of 12; the checkpoint of step 4 is kept"):
        train(task(spoiled_at=7, spoil="weight"), tmp_path, "points")
    assert weights(train(task(), tmp_path, "points")).equal(weights(whole))


def test_no_room_is_said_before_the_first_step(tmp_path, monkeypatch):
    free = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(UserError, match=r"has room for 0 MiB, and two checkpoints of 0 MiB must fit; make room"):
        train(task(killed_at=0), tmp_path, "points")


def test_a_full_disk_keeps_the_last_checkpoint(whole, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        train(task(killed_at=5), tmp_path, "points")
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(eval.files.os, "fsync", full)
        with pytest.raises(UserError, match=r"No space left on device.* the checkpoint of step 4 is kept"):
            train(task(), tmp_path, "points")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
    assert weights(train(task(), tmp_path, "points")).equal(weights(whole))


def test_a_damaged_checkpoint(whole, tmp_path):
    file = tmp_path / "whole" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="damaged or no checkpoint of a training; delete it to start again"):
        train(task(), tmp_path / "whole", "points")


def test_when_asked_to_stop_it_keeps_the_step_in_hand(whole, tmp_path, monkeypatch):
    how = task()
    asked = iter([False] * 9 + [True] * 99)  # two updates a step: in the fifth step
    monkeypatch.setattr(stop, "requested", lambda: next(asked))
    with pytest.raises(stop.Stopped, match="stopped after 5 of 12 steps; the same command continues there"):
        train(how, tmp_path, "points")
    monkeypatch.undo()
    assert weights(train(task(killed_at=4), tmp_path, "points")).equal(weights(whole))  # step 4 is not made again


def test_samples_change_nothing(whole, tmp_path):
    seen = []

    def sample(step, networks):
        seen.append((step, {key: network.training for key, network in networks.items()}))
        torch.rand(5)
        networks["other"].weight.data.zero_()

    trained = train(task(sample=sample, sample_every=5), tmp_path, "points")
    assert seen == [(step, {"line": False, "other": False}) for step in (5, 10, 12)]
    assert weights(trained).equal(weights(whole))


def test_the_average_starts_short():
    average, current = [torch.zeros(1)], [torch.ones(1)]
    moving_average(0.999)(average, current, 0)
    assert average[0].item() == pytest.approx(0.9)
    moving_average(0.999)(average, current, 10**6)
    assert average[0].item() == pytest.approx(0.9001)
