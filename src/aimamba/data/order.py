"""The order of examples as a function of (seed, position) alone, so that training resumes exactly."""

import numpy as np

_ORDER = 0

VIEW, CAPTION = 1, 2
"""What a stream of random numbers is for."""


class ShuffledOrder:
    """Which of ``count`` examples is at a global position, and the randomness of its view.

    Epoch ``position // count`` is a permutation of all examples, another one in every epoch.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._permutation = np.arange(0)

    def index(self, position: int) -> int:
        """Return the example at a position. The permutation of the last epoch asked for is kept."""
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            self._permutation = self._stream(_ORDER, epoch).permutation(self.count)
            self._epoch = epoch
        return int(self._permutation[place])

    def generator(self, position: int, purpose: int = VIEW) -> np.random.Generator:
        """Return the random generator of the view at a position (crop, flip, choice of crop), or of its caption."""
        return self._stream(purpose, position)

    def _stream(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(purpose, number)))
