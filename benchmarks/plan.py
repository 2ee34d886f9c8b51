"""The list of measurements of a run."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from aimamba.models import AIM_PRESETS
from benchmarks.kernels import TRAINING
from benchmarks.measurement import LAYOUTS, Measurement
from benchmarks.peers import PEERS
from benchmarks.telling import TRAINING_BATCH as TELLING_BATCH
from benchmarks.telling import telling

ENGINES = {  # by dtype of the matrices
    "cpu": {"float32": ("plain", "native"), "bfloat16": ("plain", "native"), "int8": ("native-int8",)},
    "cuda": {"float32": ("plain", "cuda-graphs"), "bfloat16": ("plain", "cuda-graphs-int8", "cuda-graphs"), "int8": ()},
    "mps": {"float32": ("plain",), "bfloat16": ("plain",), "int8": ()},
}
DECODER_VARIANTS = {"aim": ("plain", "fast", "fast, no kernel"), "vq-official": ("plain", "channels last")}
TRAINING_VARIANTS = {"aim": ("", "compiled", "blocks compiled"), "attention": ("",)}
TRAINING_BATCH = 4
GROWTH_TOKENS, GROWTH_BATCHES = (256, 1024, 4096), (1, 8)
# Of a decoding step; shapes depend on the size.
KERNELS = ("products", "modulation", "state", "dual", "folded", "dual, int8")
SCAN_BACKENDS = {
    "cpu": ("chunked", "plain"),
    "cuda": ("chunked", "triton", "mamba-ssm", "fla", "plain"),
    "mps": ("chunked", "plain"),
}
SCAN_MIXERS = ("gated-deltanet", "mamba3")
SCAN_BATCH = {"cpu": 4, "cuda": 16, "mps": 4}
SCAN_SIZES = {"cpu": ("aim-b",), "cuda": ("aim-b", "aim-l", "aim-xl"), "mps": ("aim-b",)}
CONVOLUTIONS = ("ours", "shifted products", "grouped")
PROFILED = (("aim-xl", 64), ("aim-l", 1))  # sizes and batches of a decoding step on CUDA
QUICK_TOKENS = 16
DEFAULT_SIZE = "aim-b"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, as chosen by the user.

    Attributes:
        sections: Names from ``SECTIONS``.
        batches: Numbers of images in a batch, for sampling, the decoder and the kernels of a decoding step.
        dtypes: Dtypes of the matrices.
        paths: Folders of peers by name; empty for an installed package.
        size: Preset to measure. By default ``aim-b``, and several presets for ``kernels`` and ``scan`` on CUDA.
        device: Torch device.
        limit_seconds: Time limit of one measurement.
        quick: Use tiny models.
        layouts: Time every launch layout of the kernels.
        telling: Only the most telling figures of a GPU, see ``benchmarks.telling``.
    """

    sections: Sequence[str]
    batches: Sequence[int]
    dtypes: Sequence[str]
    paths: dict[str, str]
    size: str | None = None
    device: str = "cpu"
    limit_seconds: float = 60.0
    quick: bool = False
    layouts: bool = False
    telling: bool = False

    def measurements(self) -> list[Measurement]:
        """Return all measurements in order; ceilings come first, unless the most telling figures do."""
        if self.telling:
            return list(telling(self._base(""), self.sections, self.paths))
        makers = {
            "ceilings": self._ceilings,
            "sampling": self._sampling,
            "images": self._images,
            "training": self._training,
            "growth": self._growth,
            "startup": self._startup,
            "decoder": self._decoder,
            "kernels": self._kernels,
            "scan": self._scan,
            "convolution": self._convolution,
            "profile": self._profile,
        }
        return [each for section, maker in makers.items() if section in self.sections for each in maker()]

    @property
    def device_type(self) -> str:
        """``cpu``, ``cuda`` or ``mps``."""
        return self.device.partition(":")[0]

    def _base(self, section: str) -> Measurement:
        return Measurement(
            section=section,
            subject="",
            tokens=QUICK_TOKENS if self.quick else 256,
            size=self.size or DEFAULT_SIZE,
            device=self.device,
            limit_seconds=self.limit_seconds,
            quick=self.quick,
            paths=tuple(self.paths.items()),
        )

    def _peers(self) -> list[str]:
        return [name for name in self.paths if name in PEERS]

    def _engines(self, dtype: str) -> tuple[str, ...]:
        return ENGINES[self.device_type][dtype]

    def _sizes(self, several: Sequence[str]) -> Sequence[str]:
        """The chosen size, or ``several`` where none was chosen; one is enough for a quick run."""
        sizes = (self.size,) if self.size else several
        return sizes[:1] if self.quick else sizes

    def _float_dtypes(self) -> list[str]:
        return [dtype for dtype in self.dtypes if dtype != "int8"]

    def _ceilings(self) -> Iterator[Measurement]:
        base = self._base("ceilings")
        yield replace(base, subject="bandwidth")
        yield from (replace(base, subject="products", dtype=dtype) for dtype in self.dtypes)

    def _sampling(self) -> Iterator[Measurement]:
        base = self._base("sampling")
        for batch in self.batches:
            for dtype in self.dtypes:
                here = replace(base, batch=batch, dtype=dtype)
                yield from (replace(here, subject="aim", variant=engine) for engine in self._engines(dtype))
                if dtype != "int8":
                    yield replace(here, subject="attention", variant="plain")
                    yield from (replace(here, subject=peer) for peer in self._peers())

    def _images(self) -> Iterator[Measurement]:
        """The fastest engine; on a CPU one batch, where images need seconds and do not gain by company."""
        base = replace(self._base("images"), subject="aim")
        for batch in self.batches if self.device_type == "cuda" else self.batches[:1]:
            for dtype in self._float_dtypes():
                yield replace(base, batch=batch, dtype=dtype, variant=self._engines(dtype)[-1])

    def _training(self) -> Iterator[Measurement]:
        base = self._base("training")
        for dtype in self._float_dtypes():
            here = replace(base, batch=TRAINING_BATCH, dtype=dtype)
            for subject, variants in TRAINING_VARIANTS.items():
                yield from (replace(here, subject=subject, variant=variant) for variant in variants)
            yield from (replace(here, subject=peer) for peer in self._peers())

    def _growth(self) -> Iterator[Measurement]:
        base = self._base("growth")
        for batch in (1,) if self.quick else GROWTH_BATCHES:
            for tokens in (16, 64) if self.quick else GROWTH_TOKENS:
                for dtype in self.dtypes:
                    here = replace(base, tokens=tokens, batch=batch, dtype=dtype)
                    yield from (replace(here, subject="aim", variant=engine) for engine in self._engines(dtype))
                    if dtype != "int8":
                        yield replace(here, subject="attention", variant="plain")

    def _startup(self) -> Iterator[Measurement]:
        base = self._base("startup")
        yield replace(base, subject="import")
        yield from (replace(base, subject="load", dtype=dtype) for dtype in self._float_dtypes())

    def _decoder(self) -> Iterator[Measurement]:
        base = self._base("decoder")
        for batch in self.batches:
            for dtype in self._float_dtypes():
                for subject, variants in DECODER_VARIANTS.items():
                    if subject == "aim" or "llamagen" in self.paths:
                        yield from (
                            replace(base, subject=subject, variant=variant, batch=batch, dtype=dtype)
                            for variant in variants
                        )

    def _kernels(self) -> Iterator[Measurement]:
        """Our kernels run in bfloat16 on CUDA alone."""
        if self.device_type != "cuda" or "bfloat16" not in self.dtypes:
            return
        variant = LAYOUTS if self.layouts else ""
        base = replace(self._base("kernels"), dtype="bfloat16")
        yield replace(base, subject="copy")
        for batch in self.batches:
            yield replace(base, subject="sampling", batch=batch)
        for size in self._sizes(tuple(AIM_PRESETS)):
            for batch in self.batches:
                here = replace(base, size=size, batch=batch, variant=variant)
                yield from (replace(here, subject=kernel) for kernel in KERNELS)
            yield replace(base, size=size, batch=TELLING_BATCH, subject=TRAINING, variant=variant)

    def _scan(self) -> Iterator[Measurement]:
        sizes = self._sizes(SCAN_SIZES[self.device_type])
        base = replace(self._base("scan"), batch=SCAN_BATCH[self.device_type])
        for dtype in self._float_dtypes():
            for size in sizes:
                here = replace(base, dtype=dtype, size=size)
                yield from (replace(here, subject=backend) for backend in SCAN_BACKENDS[self.device_type])
            if self.device_type == "cuda":
                here = replace(base, dtype=dtype, size=sizes[0])
                pairs = itertools.product(SCAN_MIXERS, ("plain", "fla"))
                yield from (replace(here, subject=backend, variant=mixer) for mixer, backend in pairs)
        if self.layouts:
            base = replace(base, size=sizes[0], variant=LAYOUTS)
            if self.device_type == "cuda":
                yield replace(base, subject="triton", dtype="bfloat16")
                return
            for dtype in self._float_dtypes():
                yield from (replace(base, dtype=dtype, subject=each) for each in SCAN_BACKENDS[self.device_type])

    def _convolution(self) -> Iterator[Measurement]:
        base = replace(self._base("convolution"), batch=TRAINING_BATCH)
        for dtype in self._float_dtypes():
            yield from (replace(base, dtype=dtype, subject=form) for form in CONVOLUTIONS)

    def _profile(self) -> Iterator[Measurement]:
        """A token of every engine and batch, and a training step, in bfloat16 where the plan has it."""
        base = replace(self._base("profile"), dtype="bfloat16" if "bfloat16" in self.dtypes else self.dtypes[0])
        if base.dtype in self._float_dtypes():
            batch = TELLING_BATCH if self.device_type == "cuda" else TRAINING_BATCH
            yield replace(base, subject="training", batch=batch)
        for size, batch in PROFILED if self.device_type == "cuda" and not self.size else [(base.size, self.batches[0])]:
            yield replace(base, subject="sampling", size=size, batch=batch, variant=self._engines(base.dtype)[-1])
