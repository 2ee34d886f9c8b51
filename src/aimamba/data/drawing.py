"""Draw avatars: a style and a seed make an image, the same pixels on every run.

Many images are drawn by several fresh interpreters, which write raw pixels to a pipe. ``multiprocessing`` would run the
caller's script again in every worker, which fails for a script without a ``__main__`` guard.
"""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from aimamba.cores import usable_cores
from aimamba.data.transforms import to_array, to_rgb

_WORTH_SHARING = 300  # images; starting an interpreter and building a style takes as long as drawing about as many

_CHILD = "from aimamba.data.drawing import main; main()"


class DrawRequest(NamedTuple):
    """Images to draw: those with the seeds ``{style}-{split}-{number}``, ``first <= number < last``."""

    style: str
    split: str
    first: int
    last: int
    size: int

    @property
    def amount(self) -> int:
        """Return the number of images."""
        return self.last - self.first


def available_styles() -> tuple[str, ...]:
    """Return the names of all styles that can be drawn."""
    names = (path.name for path in files("dicebear_styles").iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


@cache
def load_style(name: str) -> Any:
    """Return a style of DiceBear's, whose definition is checked once: that takes as long as drawing 100 images."""
    import dicebear  # noqa: PLC0415 - cached images do not need it

    return dicebear.Style.from_json(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8"))


def draw(request: DrawRequest) -> Iterator[UInt8[np.ndarray, "s s 3"]]:
    """Draw the images of a request one by one, on a white background."""
    import dicebear  # noqa: PLC0415 - cached images do not need these two
    import resvg_py  # noqa: PLC0415

    style = load_style(request.style)
    for number in range(request.first, request.last):
        seed = f"{request.style}-{request.split}-{number}"
        svg = dicebear.Avatar(style, {"seed": seed, "size": request.size}).to_string()
        yield to_array(to_rgb(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg)))))


def draw_all(
    requests: Sequence[DrawRequest], *, progress: bool = False, processes: int | None = None
) -> Iterator[UInt8[np.ndarray, "n s s 3"]]:
    """Draw several requests, in several processes where that is faster.

    Args:
        requests: What to draw.
        progress: Show a bar on stderr.
        processes: How many processes to use; by default one for each core that this process may use.

    Yields:
        The images of each request in turn, (amount, size, size, 3), as soon as they are ready.
    """
    total = sum(request.amount for request in requests)
    if total == 0:
        return
    processes = processes or usable_cores()
    threads = processes if total >= _WORTH_SHARING and sys.executable else 1
    deliver = _draw_here if threads == 1 else _draw_apart
    pieces = -(-threads // len(requests))  # as many as keep every process busy
    with tqdm(total=total, desc="drawing avatars", unit="image", disable=not progress) as bar:

        def advance() -> None:
            with bar.get_lock():
                bar.update()

        pool, work = ThreadPoolExecutor(threads), _Work(advance)
        try:
            tasks = [[pool.submit(deliver, piece, work) for piece in _split(request, pieces)] for request in requests]
            for parts in tasks:
                yield np.concatenate([part.result() for part in parts])
        finally:
            work.stop()  # if all is drawn, nothing is left to be stopped
            pool.shutdown(cancel_futures=True)


def main() -> None:
    """Draw the request in ``sys.argv`` and write its pixels to stdout; ``draw_all`` starts workers that run this."""
    style, split, *numbers = sys.argv[1:]
    for image in draw(DrawRequest(style, split, *map(int, numbers))):
        sys.stdout.buffer.write(image.tobytes())
        sys.stdout.buffer.flush()


class _Work:
    """What the threads of ``draw_all`` share.

    Attributes:
        advance: Called after every image.
    """

    def __init__(self, advance: Callable[[], None]) -> None:
        self.advance = advance
        self._stopped = False
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise if the images are not wanted any more."""
        if self._stopped:
            raise CancelledError

    def stop(self) -> None:
        """End every process, and every thread after its present image."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.kill()

    @contextmanager
    def child(self, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[IO[bytes]]:
        """Run a process that ``stop`` ends, out of reach of Ctrl-C; return what it writes."""
        with self._lock:
            self.check()
            child = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
            )
            self._children.add(child)
        with child:
            assert child.stdout is not None
            yield child.stdout
        with self._lock:
            self._children.discard(child)
        self.check()


def _draw_here(request: DrawRequest, work: _Work) -> UInt8[np.ndarray, "n s s 3"]:
    images = np.empty((request.amount, request.size, request.size, 3), np.uint8)
    for place, image in enumerate(draw(request)):
        work.check()
        images[place] = image
        work.advance()
    return images


def _draw_apart(request: DrawRequest, work: _Work) -> UInt8[np.ndarray, "n s s 3"]:
    """Draw in another process; what it fails to deliver is drawn in this one, where errors are raised."""
    shape = (request.size, request.size, 3)
    length = request.size * request.size * 3
    command = [sys.executable, "-P", "-c", _CHILD, *map(str, request)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    images = []
    with work.child(command, environment) as output:
        while len(pixels := output.read(length)) == length:
            images.append(np.frombuffer(pixels, np.uint8).reshape(shape))
            work.advance()
    missing = _draw_here(request._replace(first=request.first + len(images)), work)
    return np.concatenate([np.array(images, np.uint8).reshape(-1, *shape), missing])


def _split(request: DrawRequest, pieces: int) -> list[DrawRequest]:
    """Cut a request into at most ``pieces`` requests of about equal length."""
    pieces = max(1, min(pieces, request.amount))
    cuts = [request.first + request.amount * piece // pieces for piece in range(pieces + 1)]
    return [request._replace(first=first, last=last) for first, last in pairwise(cuts)]
