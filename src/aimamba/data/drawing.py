"""Drawing avatars: a style and a seed give an image, the same pixels on every run.

Large orders are shared out among fresh interpreters that write raw pixels to a pipe. ``multiprocessing`` would run the
caller's own script again in every worker, which a first script without a ``__main__`` guard does not survive.
"""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from aimamba.data.transforms import to_array, to_rgb

_WORTH_SHARING = 300  # images; an interpreter that has built its style could have drawn about as many

_CHILD = "from aimamba.data.drawing import main; main()"


class Order(NamedTuple):
    """A run of images to draw: those with the seeds ``{style}-{split}-{number}``, ``first <= number < last``."""

    style: str
    split: str
    first: int
    last: int
    size: int

    @property
    def amount(self) -> int:
        """How many images."""
        return self.last - self.first


def available_styles() -> tuple[str, ...]:
    """Names of all styles that can be drawn."""
    names = (path.name for path in files("dicebear_styles").iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def draw(order: Order) -> Iterator[UInt8[np.ndarray, "s s 3"]]:
    """Draw the images of an order one by one, on a white ground."""
    import dicebear  # noqa: PLC0415 - only drawing needs these two; images that are cached do without
    import resvg_py  # noqa: PLC0415

    style = dicebear.Style.from_json(files("dicebear_styles").joinpath(f"{order.style}.json").read_text("utf-8"))
    for number in range(order.first, order.last):
        seed = f"{order.style}-{order.split}-{number}"
        svg = dicebear.Avatar(style, {"seed": seed, "size": order.size}).to_string()
        yield to_array(to_rgb(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg)))))


def draw_all(
    orders: Sequence[Order], *, progress: bool = False, processes: int | None = None
) -> Iterator[UInt8[np.ndarray, "n s s 3"]]:
    """Draw several orders, by several processes where that is worth their start.

    Args:
        orders: What to draw.
        progress: Show a bar on stderr.
        processes: How many to draw with; by default one for each core that this process may use.

    Yields:
        The images of each order, (amount, size, size, 3), in the order of the orders and as soon as they are ready.
    """
    total = sum(order.amount for order in orders)
    if total == 0:
        return
    processes = processes or _cores()
    threads = processes if total >= _WORTH_SHARING and sys.executable else 1
    deliver = _draw_here if threads == 1 else _draw_apart
    pieces = -(-threads // len(orders))  # as many as keep every process busy
    with tqdm(total=total, desc="drawing avatars", unit=" images", disable=not progress) as bar:

        def advance() -> None:
            with bar.get_lock():
                bar.update()

        pool = ThreadPoolExecutor(threads)
        try:
            tasks = [[pool.submit(deliver, piece, advance) for piece in _split(order, pieces)] for order in orders]
            for parts in tasks:
                yield np.concatenate([part.result() for part in parts])
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> None:
    """Draw the order in ``sys.argv`` and write its pixels to stdout: the worker's side of ``draw_all``."""
    style, split, *numbers = sys.argv[1:]
    for image in draw(Order(style, split, *map(int, numbers))):
        sys.stdout.buffer.write(image.tobytes())
        sys.stdout.buffer.flush()


def _draw_here(order: Order, advance: Callable[[], None]) -> UInt8[np.ndarray, "n s s 3"]:
    images = np.empty((order.amount, order.size, order.size, 3), np.uint8)
    for place, image in enumerate(draw(order)):
        images[place] = image
        advance()
    return images


def _draw_apart(order: Order, advance: Callable[[], None]) -> UInt8[np.ndarray, "n s s 3"]:
    """Draw in another process; what that one fails to deliver is drawn here, so that an error shows where it arises."""
    shape = (order.size, order.size, 3)
    length = order.size * order.size * 3
    command = [sys.executable, "-P", "-c", _CHILD, *map(str, order)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    images = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        while len(pixels := child.stdout.read(length)) == length:
            images.append(np.frombuffer(pixels, np.uint8).reshape(shape))
            advance()
    missing = _draw_here(order._replace(first=order.first + len(images)), advance)
    return np.concatenate([np.array(images, np.uint8).reshape(-1, *shape), missing])


def _split(order: Order, pieces: int) -> list[Order]:
    """Cut an order into at most ``pieces`` runs of about equal length."""
    pieces = max(1, min(pieces, order.amount))
    cuts = [order.first + order.amount * piece // pieces for piece in range(pieces + 1)]
    return [order._replace(first=first, last=last) for first, last in pairwise(cuts)]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
