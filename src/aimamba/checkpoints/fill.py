"""Load tensors into a module that may be on the meta device, strictly."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from aimamba.errors import CheckpointError


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Replace every parameter of ``model`` by the tensor of its name.

    Args:
        model: The module, on any device, also on the meta device.
        tensors: A state dict; the module shares its memory afterwards.
        where: Named in the error, e.g. the file's path.

    Raises:
        CheckpointError: Keys are missing, left over, of another shape or not of floating point; the first few of each
            are named.
    """
    wanted = model.state_dict()
    faults = {
        "missing": wanted.keys() - tensors.keys(),
        "left over": tensors.keys() - wanted.keys(),
        "of another shape": {k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape},
        "not of floating point": {key for key in wanted if key in tensors and not tensors[key].is_floating_point()},
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(keys)} {fault} ({_first_few(keys)})" for fault, keys in faults.items() if keys)
        raise CheckpointError(f"{where}: weights do not fit the model: {listed}")
    model.load_state_dict(dict(tensors), assign=True)


def _first_few(keys: Iterable[str], count: int = 3) -> str:
    ordered = sorted(keys)
    return ", ".join(ordered[:count]) + (", ..." if len(ordered) > count else "")
