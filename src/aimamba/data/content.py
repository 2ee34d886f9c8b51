"""The content hash of a set of images, by which an encoding knows the images that it began with."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from aimamba.data.folder import ImageFolder
from aimamba.data.images import ImageSet


def content_hash(images: ImageSet) -> str:
    """Return a SHA-256 that changes with every image, name, label and the order, but not with place or time of files.

    Of a folder the files are hashed as they are, without decoding them; of any other set, the pixels.

    Raises:
        DataError: A file cannot be read.
    """
    digest = hashlib.sha256(json.dumps([images.size, len(images), list(images.class_names)]).encode())
    digest.update(np.asarray(images.labels).astype("<i8").tobytes())
    if isinstance(images, ImageFolder):
        with ThreadPoolExecutor(4) as pool:
            for name, content in zip(images.names, pool.map(images.file_hash, range(len(images))), strict=True):
                digest.update(json.dumps([name, content]).encode())
    else:
        for index in range(len(images)):
            digest.update(np.ascontiguousarray(images.image(index, None)).tobytes())
    return digest.hexdigest()
