"""Telling whether a network still has the weights that something was made from."""

from torch import nn


def versions(module: nn.Module) -> list[tuple[int, int]]:
    """Where every weight stands and how often it was changed there.

    Changes through ``Parameter.data`` that leave a weight in its place go unseen; tensors of inference mode count no
    changes.
    """
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in module.parameters()]
