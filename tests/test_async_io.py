"""Reading and writing beside the networks: what waits for what, and where errors are raised."""

import threading

import pytest
import torch

from cyclediff.data import images
from cyclediff.data.images import read_rgb
from cyclediff.errors import UserError
from cyclediff.runtime import artifacts
from cyclediff.runtime.artifacts import Pictures
from cyclediff.runtime.async_io import Writer

from .fake_study import translated

PATIENCE = 60  # seconds to wait for a thing that may never come


def test_a_batch_is_written_while_the_next_one_is_made(tmp_path, monkeypatch):
    """The first picture is held back until the network sees the second batch: written at once, it never would."""
    second, late, calls = threading.Event(), [], []

    def write(image, path, plain=artifacts.write_png):
        late.append(not second.wait(PATIENCE))
        plain(image, path)

    def network(x, t):
        calls.append(t)
        if len(calls) > 4:  # a batch takes four evaluations
            second.set()
        return 0.5 * x

    monkeypatch.setattr(artifacts, "write_png", write)
    ids, run = translated(tmp_path, network, images=4)
    assert late == [False] * 4
    assert not run.missing(ids)


def test_a_batch_is_read_while_the_one_before_is_made(tmp_path, monkeypatch):
    read, late, calls = threading.Event(), [], []

    def reading(paths, plain=images.read_batch):
        calls.append(paths)
        if len(calls) == 2:
            read.set()
        return plain(paths)

    def network(x, t):
        late.append(not read.wait(PATIENCE))
        return 0.5 * x

    monkeypatch.setattr(images, "read_batch", reading)
    translated(tmp_path, network, images=4)
    assert late == [False] * 8
    assert len(calls) == 2


def results(folder, items):
    """Pictures to be written to a run's folder; the k-th has the value k."""
    (folder / "images").mkdir(exist_ok=True)
    values = torch.arange(len(items), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    return [(Pictures(), folder, item, value, 0) for item, value in zip(items, values, strict=True)]


def test_pictures_are_written_in_order_and_all(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        artifacts,
        "write_png",
        lambda image, path, plain=artifacts.write_png: (plain(image, path), written.append(path)),
    )
    with Writer() as writer:
        writer.write(results(tmp_path, "0123"))
        writer.write(results(tmp_path, "45"))
    assert written == [tmp_path / "images" / f"{i}.png" for i in range(6)]
    assert [read_rgb(path).getpixel((0, 0))[0] for path in written] == [0, 1, 2, 3, 0, 1]


def write_badly(folder, more):
    bad = results(folder, "a")
    with Writer() as writer:
        writer.write([(bad[0][0], folder / "nowhere", *bad[0][2:])])
        if more:
            writer.write(results(folder, "b"))
            raise AssertionError("the second batch was taken")


@pytest.mark.parametrize("more", [True, False])
def test_an_error_is_raised_at_the_next_batch_or_at_the_end(more, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_badly(tmp_path, more)


def write_and_fail(folder):
    with Writer() as writer:
        writer.write(results(folder, "012"))
        raise ZeroDivisionError


def test_after_another_error_what_was_begun_is_written(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_and_fail(tmp_path)
    assert len(list((tmp_path / "images").iterdir())) == 3
