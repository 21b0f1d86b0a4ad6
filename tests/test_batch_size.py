"""The size of a batch that is found by measuring, on a device whose speed and memory are known."""

import json

import pytest
import torch

from cyclediff.errors import UserError
from cyclediff.runtime import batch_size
from cyclediff.runtime.batch_size import FILE, find_batch_size, is_out_of_memory, remember, remembered


class Device:
    """Evaluates `lanes` images at once in a time, and has memory for `room` images."""

    def __init__(self, lanes, room, seconds=0.01):
        self.lanes, self.room, self.seconds, self.now = lanes, room, seconds, 0.0

    def __call__(self, images):
        if images > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.now += self.seconds * -(-images // self.lanes)


def found(device, most, monkeypatch):
    monkeypatch.setattr(batch_size.time, "perf_counter", lambda: device.now)
    return find_batch_size(device, most)


@pytest.mark.parametrize(
    ("lanes", "room", "most", "size"),
    [
        (64, 1000, 1000, 64),  # more gains nothing
        (1, 1000, 1000, 1),
        (64, 20, 1000, 16),  # memory ends
        (64, 1000, 11, 8),  # no more images
        (1000, 1000, 1000, batch_size.MOST),
        (64, 1000, 1, 1),
    ],
)
def test_doubling_ends(lanes, room, most, size, monkeypatch):
    assert found(Device(lanes, room), most, monkeypatch) == size


def test_what_takes_long_is_not_made_longer(monkeypatch):
    device = Device(64, 1000, seconds=2 * batch_size.LONG)
    assert found(device, 1000, monkeypatch) == 1
    assert device.now < 10 * batch_size.LONG


def test_no_room_for_one_image(monkeypatch):
    with pytest.raises(UserError, match="not enough for one image"):
        found(Device(64, 0), 1000, monkeypatch)


def test_other_errors_are_errors(monkeypatch):
    def broken(images):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        find_batch_size(broken, 8)


def test_the_error_of_torch_is_known():
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**60)
    assert is_out_of_memory(full.value)
    assert not is_out_of_memory(OSError("out of memory"))


def test_sizes_are_kept_by_key(tmp_path):
    assert remembered(tmp_path / "new", "a") is None
    remember(tmp_path / "new", "a", 16)
    remember(tmp_path / "new", "b", 4)
    assert (remembered(tmp_path / "new", "a"), remembered(tmp_path / "new", "b")) == (16, 4)


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "many"}', '{"a": 0}', "{"])
def test_a_damaged_file_is_ignored_and_written_again(content, tmp_path):
    (tmp_path / FILE).write_text(content)
    assert remembered(tmp_path, "a") is None
    remember(tmp_path, "a", 8)
    assert json.loads((tmp_path / FILE).read_text()) == {"a": 8}


def test_a_cache_that_cannot_be_written_is_ignored(tmp_path):
    (tmp_path / "file").write_text("")
    remember(tmp_path / "file", "a", 8)
    assert remembered(tmp_path / "file", "a") is None
