"""One training in two processes: the mean of their gradients, and one set of weights."""

import os
import socket
from functools import partial

import pytest
import torch
from torch import nn

from cyclediff.runtime.training import Training, train

from .forking import FORKS

STEPS = 6


def batch(number: int, rank: int):
    rng = torch.Generator().manual_seed(10 * number + rank)
    x = torch.randn(4, 3, generator=rng)
    return x, x.sum(1, keepdim=True)


def task(ranks: tuple[int, ...], seed: int) -> Training:
    """Weights start at another seed in each process; a step takes the batches of some ranks."""
    torch.manual_seed(seed)
    network = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)  # Adam would hide a factor

    def step(number, update):
        x, y = (torch.cat(part) for part in zip(*(batch(number, rank) for rank in ranks), strict=True))
        loss = (network(x) - y).square().mean()
        update("line", loss)
        return {"loss": loss.detach()}

    return Training({"line": network}, {"line": optimizer}, step, STEPS, {"seed": 5}, averages={"line": 0.5})


def as_rank(rank: int, port: int, folder) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    trained = train(task((rank,), seed=1 + rank), folder, "line")
    torch.save(trained.networks["line"].state_dict(), folder / f"{rank}.pt")


@pytest.fixture
def in_two(tmp_path):
    def run():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        begun = [FORKS.Process(target=partial(as_rank, rank, port, tmp_path)) for rank in range(2)]
        for process in begun:
            process.start()
        for process in begun:
            process.join(60)
        return [process.exitcode for process in begun], [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    return run


def test_two_processes_are_one_with_both_batches(in_two, tmp_path):
    codes, (first, second) = in_two()
    assert codes == [0, 0]
    whole = train(task((0, 1), seed=1), tmp_path / "whole", "line").networks["line"].state_dict()
    for key, value in first.items():
        assert value.equal(second[key])
        torch.testing.assert_close(value, whole[key])
