"""Data: avatars that come with the package, Fashion-MNIST, folders of images, and the way from each to batches.

Each name below is imported when it is first used, so that looking at an image does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimamba.data.avatars import STYLES, Avatars
    from aimamba.data.fashion_mnist import FashionMNIST
    from aimamba.data.folder import BrokenImageWarning, ImageFolder
    from aimamba.data.loader import Batch, batches
    from aimamba.data.sets import ImageSet, open_images
    from aimamba.data.sheets import sheet, to_float, to_pil, to_uint8

_HOMES = {
    "STYLES": "avatars",
    "Avatars": "avatars",
    "Batch": "loader",
    "BrokenImageWarning": "folder",
    "FashionMNIST": "fashion_mnist",
    "ImageFolder": "folder",
    "ImageSet": "sets",
    "batches": "loader",
    "open_images": "sets",
    "sheet": "sheets",
    "to_float": "sheets",
    "to_pil": "sheets",
    "to_uint8": "sheets",
}

__all__ = [
    "STYLES",
    "Avatars",
    "Batch",
    "BrokenImageWarning",
    "FashionMNIST",
    "ImageFolder",
    "ImageSet",
    "batches",
    "open_images",
    "sheet",
    "to_float",
    "to_pil",
    "to_uint8",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aimamba.data' has no attribute {name!r}")
    return getattr(import_module(f"aimamba.data.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
