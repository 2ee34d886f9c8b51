"""Where the codes of a model's samples are kept until a command is finished: in the cache folder."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from aimamba.errors import ConfigError

if TYPE_CHECKING:
    from aimamba.evaluation.kept_codes import KeptCodes
    from aimamba.generation import SamplingConfig
    from aimamba.generation.record import ModelRecord
    from aimamba.sharing import Sharing

    Keep: TypeAlias = Callable[..., KeptCodes]


@contextmanager
def kept_samples(
    model: "ModelRecord", labelling: str, sampling: "SamplingConfig", sharing: "Sharing"
) -> "Iterator[Keep | None]":
    """Yield a function that returns where the codes of samples are kept.

    An interrupted command goes on with them. Where the cache cannot be written, or another process samples the same
    now, nothing is kept. The function takes settings of sampling and, where a command has samples of several kinds,
    a text that tells them apart.

    Args:
        model: Whose samples.
        labelling: What they show.
        sampling: How they are sampled; each guidance scale has a folder of its own.
        sharing: The processes that share the work.
    """
    import hashlib
    import json
    import shutil

    from aimamba.evaluation.kept_codes import KeptCodes
    from aimamba.evaluation.sources import kept_settings
    from aimamba.files import cache_folder
    from aimamba.train.lock import locked

    about = kept_settings(model, labelling, replace(sampling, cfg_scale=1.0))
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "samples" / name

    def keep(config: "SamplingConfig", which: str = "") -> KeptCodes:
        part = f"guidance-{config.cfg_scale!r}{which and '-'}{which}"
        return KeptCodes(folder / part, kept_settings(model, labelling + which, config))

    def lock() -> bool:
        with suppress(ConfigError, OSError):
            stack.enter_context(locked(folder))
            return True
        return False

    with ExitStack() as stack:
        if not sharing.once(lock):
            yield None
            return
        try:
            yield keep
        except KeyboardInterrupt as error:
            error.args = ("stopped; the same command goes on with the samples that are finished",)
            raise
        if sharing.is_first_here:
            for part in folder.glob("guidance-*"):
                shutil.rmtree(part, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()
