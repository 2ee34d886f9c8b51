"""HTTP as uvicorn speaks it, with a limit for clients that hang. Nothing here needs torch."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def make_protocol(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol with a limit for clients that hang: while they send headers, or take an answer."""

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._go_on()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:  # a part of the headers
                self._wait()
            elif not self.flow.write_paused:
                self._go_on()

        def _unsupported_upgrade_warning(self) -> None:
            """Say nothing: the request is answered without the upgrade, and libraries would not change that."""

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait()

        def resume_writing(self) -> None:
            self._go_on()
            super().resume_writing()

        def _wait(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(seconds, self.transport.abort)

        def _go_on(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Protocol
