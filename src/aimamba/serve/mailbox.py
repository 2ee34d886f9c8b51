"""Events of the scheduler's thread on their way to the event loop."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from aimamba.generation.requests import Event, Failed, Preview


class Mailbox:
    """Events from the scheduler's thread. Of the previews of an image, only the latest is kept."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._events, self._filled = loop, deque[Event](), asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event. May be called from any thread."""
        self._call(self._add, event)

    def _add(self, event: Event) -> None:
        if not isinstance(event, Failed):
            self._events = deque(
                each for each in self._events if not (isinstance(each, Preview) and each.number == event.number)
            )
        self._events.append(event)
        self._filled.set()

    def wake(self) -> None:
        """Let ``get`` return. May be called from any thread."""
        self._call(self._filled.set)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)

    async def get(self, seconds: float) -> Event | None:
        """Return the next event, or None if there is none within some seconds or after ``wake``."""
        if not self._events:
            self._filled.clear()
            try:
                async with asyncio.timeout(max(0, seconds)):
                    await self._filled.wait()
            except TimeoutError:
                return None
        return self._events.popleft() if self._events else None
