"""Reading and writing beside the networks: what waits for what, and errors that come out."""

import threading

import pytest
import torch

from cyclediff.data.images import read_rgb
from cyclediff.errors import UserError
from cyclediff.runtime import async_io, batches
from cyclediff.runtime.async_io import Writer

from .test_translate import translated

PATIENCE = 60  # seconds until a thing that never comes is missed


def test_a_batch_is_written_while_the_next_one_is_made(tmp_path, monkeypatch):
    """The first picture is held back until the network sees the second batch: written at once, it never would."""
    second, late, calls = threading.Event(), [], []

    def write(image, path, plain=async_io.write_png):
        late.append(not second.wait(PATIENCE))
        plain(image, path)

    def network(x, t):
        calls.append(t)
        if len(calls) > 4:  # a batch takes four evaluations
            second.set()
        return 0.5 * x

    monkeypatch.setattr(async_io, "write_png", write)
    source, run = translated(tmp_path, network, images=4)
    assert late == [False] * 4
    assert not run.missing(source.ids)


def test_a_batch_is_read_while_the_one_before_is_made(tmp_path, monkeypatch):
    read, late, calls = threading.Event(), [], []

    def reading(paths, plain=batches.read_batch):
        calls.append(paths)
        if len(calls) == 2:
            read.set()
        return plain(paths)

    def network(x, t):
        late.append(not read.wait(PATIENCE))
        return 0.5 * x

    monkeypatch.setattr(batches, "read_batch", reading)
    translated(tmp_path, network, images=4)
    assert late == [False] * 8
    assert len(calls) == 2


def pictures(count):
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4)


def test_pictures_are_written_in_order_and_all(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        async_io, "write_png", lambda image, path, plain=async_io.write_png: (plain(image, path), written.append(path))
    )
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    with Writer() as writer:
        writer.write(pictures(4), paths[:4])
        writer.write(pictures(2), paths[4:])
    assert written == paths
    assert [read_rgb(path).getpixel((0, 0))[0] for path in paths] == [0, 1, 2, 3, 0, 1]


def write_badly(folder, more):
    with Writer() as writer:
        writer.write(pictures(1), [folder / "nowhere" / "a.png"])
        if more:
            writer.write(pictures(1), [folder / "b.png"])
            raise AssertionError("the second batch was taken")


@pytest.mark.parametrize("more", [True, False])
def test_an_error_comes_out_at_the_next_batch_or_at_the_end(more, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_badly(tmp_path, more)


def write_and_fail(folder):
    with Writer() as writer:
        writer.write(pictures(3), [folder / f"{i}.png" for i in range(3)])
        raise ZeroDivisionError


def test_after_another_error_what_was_begun_is_written(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_and_fail(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
