"""Detecting that the weights of a network have changed since something was prepared from them."""

from torch import nn


def weight_versions(module: nn.Module) -> list[tuple[int, int]]:
    """Return the address of every weight and how often it was changed in place.

    It misses changes through ``Parameter.data`` that leave a weight at its address, and changes of tensors made in
    inference mode, which count none.
    """
    weights = [*module.parameters(), *module.buffers()]
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
