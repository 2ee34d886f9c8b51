"""Data: avatars that come with the package, Fashion-MNIST and folders of images, and batches and codes of them.

Each name below is imported when it is first used, so that opening an image does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimamba.data.avatars import STYLES, Avatars
    from aimamba.data.captioned import CaptionedAvatars
    from aimamba.data.emoji import EmojiImages
    from aimamba.data.fashion_mnist import FashionMNIST
    from aimamba.data.folder import BrokenImageWarning, ImageFolder
    from aimamba.data.images import CaptionedSet, Images, ImageSet
    from aimamba.data.loader import Batch, batches
    from aimamba.data.sets import open_images, open_source
    from aimamba.data.sheets import sheet, to_float, to_pil, to_uint8
    from aimamba.data.vocabulary import Vocabulary
    from aimamba.data.webdataset import TarImages

_HOMES = {
    "Avatars": "avatars",
    "Batch": "loader",
    "BrokenImageWarning": "folder",
    "CaptionedAvatars": "captioned",
    "CaptionedSet": "images",
    "EmojiImages": "emoji",
    "FashionMNIST": "fashion_mnist",
    "ImageFolder": "folder",
    "ImageSet": "images",
    "Images": "images",
    "STYLES": "avatars",
    "TarImages": "webdataset",
    "Vocabulary": "vocabulary",
    "batches": "loader",
    "open_images": "sets",
    "open_source": "sets",
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
    "CaptionedAvatars",
    "CaptionedSet",
    "EmojiImages",
    "FashionMNIST",
    "ImageFolder",
    "ImageSet",
    "Images",
    "TarImages",
    "Vocabulary",
    "batches",
    "open_images",
    "open_source",
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
