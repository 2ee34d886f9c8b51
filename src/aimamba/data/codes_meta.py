"""The description of a folder of codes: ``meta.json``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aimamba.config import check, from_mapping
from aimamba.data.codes import LARGEST_CODEBOOK
from aimamba.documents import read_json
from aimamba.errors import ConfigError, DataError

META_FILE = "meta.json"
REMEDY = "give another --out, or remove that folder and encode again"

_LARGEST_SIDE = 4096
_MOST_IMAGES = 10**9
_LARGEST_META = 1 << 24  # bytes


@dataclass(frozen=True, kw_only=True)
class CodesMeta:
    """Description of the codes of one split.

    Attributes:
        tokenizer: Fingerprint of the tokenizer that made the codes, see ``shards.fingerprint``.
        codebook_size: All codes are below it.
        grid: Rows and columns of codes.
        size: Side of the images in pixels.
        class_names: Names of the labels.
        views: Names of the views of an image, in the order of their axis.
        pictures: Number of images.
        shard_pictures: Images in a shard; the last one may have fewer.
        images: ``content_hash`` of the images; None in folders that earlier versions wrote.
        captions: Whether ``captions.jsonl`` has the captions of every image.
    """

    tokenizer: str
    codebook_size: int
    grid: tuple[int, ...]
    size: int
    class_names: tuple[str, ...]
    views: tuple[str, ...]
    pictures: int
    shard_pictures: int
    images: str | None = None
    captions: bool = False

    def __post_init__(self) -> None:
        """Check that there can be such codes.

        Raises:
            ConfigError: A number is out of range, or there are no classes, views or images.
        """
        check(
            1 <= self.codebook_size <= LARGEST_CODEBOOK,
            f"codebook_size must be 1 to {LARGEST_CODEBOOK}, got {self.codebook_size}",
        )
        sides = self.grid
        check(len(sides) == 2 and min(sides) >= 1, f"grid must be rows and columns, got {list(sides)}")
        check(max(sides) <= _LARGEST_SIDE, f"grid must be at most {_LARGEST_SIDE} a side, got {list(sides)}")
        for name in ("size", "pictures", "shard_pictures"):
            value = getattr(self, name)
            check(1 <= value <= _MOST_IMAGES, f"{name} must be 1 to {_MOST_IMAGES:,}, got {value}")
        check(len(self.class_names) >= 1, "class_names must name at least one class")
        check(len(self.views) >= 1, "views must name at least one view")

    def shards(self) -> Iterator[tuple[str, int, int]]:
        """Yield the name of every shard, its first image, and its last image plus one."""
        for start in range(0, self.pictures, self.shard_pictures):
            yield self.shard_name(start), start, min(start + self.shard_pictures, self.pictures)

    def shard_name(self, start: int) -> str:
        """Return the name of the shard that begins with image ``start``."""
        return f"codes-{start // self.shard_pictures:05d}.npy"


def read_meta(folder: Path) -> CodesMeta | None:
    """Read the description in a folder; None if there is none.

    Raises:
        DataError: It is damaged.
    """
    path = folder / META_FILE
    if not path.is_file():
        if path.exists():
            raise DataError(f"{path}: this is not a file; {REMEDY}")
        return None
    if path.stat().st_size > _LARGEST_META:
        raise DataError(f"{path}: holds {path.stat().st_size:,} bytes, too many for a description; {REMEDY}")
    try:
        values = read_json(path)
        return from_mapping(CodesMeta, values, where=str(path))
    except ConfigError as error:
        detail = str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path}: this does not describe a folder of codes ({detail}); {REMEDY}") from error
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: this does not describe a folder of codes; {REMEDY}") from error
