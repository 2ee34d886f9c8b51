"""What a checkpoint holds: a generator, a tokenizer or both."""

from aimamba.errors import CheckpointError

_SIGNS = {"generator": ("blocks.", "backbone.", "mamba."), "tokenizer": ("encoder.", "vqvae.")}


def parts_inside(source: str) -> set[str]:
    """Tell which of ``generator`` and ``tokenizer`` there are in a folder, a file or a hub repository.

    Raises:
        CheckpointError: There is no such checkpoint, it cannot be read, or it holds neither.
    """
    from aimamba.checkpoints.hub import find, read_checkpoint
    from aimamba.models import AIM_PRESETS, VQ_PRESETS

    places, faults = set(), []
    for part in _SIGNS:
        try:
            places.add(find(source, part))
        except CheckpointError as error:
            faults.append(error)
    if not places:
        if source in AIM_PRESETS or source in VQ_PRESETS:
            raise CheckpointError(
                f"{source}: this is a preset, a shape without weights; give a trained model, see docs/weights.md"
            )
        raise faults[0]
    keys = {key for place in places for key in read_checkpoint(place)[1]}
    inside = {part for part, signs in _SIGNS.items() if any(key.startswith(signs) for key in keys)}
    if not inside:
        raise CheckpointError(f"{source}: holds neither a generator nor a tokenizer that aimamba knows; check the path")
    return inside
