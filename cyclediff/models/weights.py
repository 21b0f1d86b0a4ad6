"""Weights into networks: all of them, or a sentence."""

from collections.abc import Mapping

from torch import Tensor, nn

from cyclediff.errors import UserError


def load_weights(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict as float32; every parameter must be there in its shape, and nothing else.

    Raises:
        UserError: if it is not; names the first keys that are wrong.
    """
    wanted = network.state_dict()
    wrong = {
        "missing": wanted.keys() - state.keys(),
        "unknown": state.keys() - wanted.keys(),
        "of another shape": {k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape},
    }
    faults = [f"{len(keys)} {what} (as {min(keys)})" for what, keys in wrong.items() if keys]
    if faults:
        raise UserError(
            f"{origin} does not hold a {type(network).__name__}: {', '.join(faults)} tensors; choose its file"
        )
    network.load_state_dict({key: value.float() for key, value in state.items()})
