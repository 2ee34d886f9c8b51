"""Watch which tensors of safetensors files are read."""

from collections.abc import Callable

import pytest

from aimamba.checkpoints import weights


def watch_tensors(monkeypatch: pytest.MonkeyPatch, read: Callable[[str, str], None]) -> None:
    """Call ``read`` with the file and the name of every tensor that is read."""
    opened = weights.safe_open

    class Watched:
        def __init__(self, path, **options):
            self.path, self.file = path, opened(path, **options)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, key):
            read(self.path, key)
            return self.file.get_tensor(key)

    monkeypatch.setattr(weights, "safe_open", Watched)
