"""Which measurements a run takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.measurement import Measurement
from benchmarks.peers import PEERS

ENGINES = {  # by dtype of the matrices
    "cpu": {"float32": ("plain", "native"), "bfloat16": ("plain", "native"), "int8": ("native-int8",)},
    "cuda": {"float32": ("plain", "cuda-graphs"), "bfloat16": ("plain", "cuda-graphs"), "int8": ()},
    "mps": {"float32": ("plain",), "bfloat16": ("plain",), "int8": ()},
}
DECODER_VARIANTS = {"aim": ("plain", "fast", "fast, no kernel"), "vq-official": ("plain", "channels last")}
TRAINING_VARIANTS = {"aim": ("", "compiled", "blocks compiled"), "attention": ("",)}
TRAINING_BATCH = 4
GROWTH_TOKENS, GROWTH_BATCHES = (256, 1024, 4096), (1, 8)
QUICK_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the user asked for.

    Attributes:
        sections: Of ``SECTIONS``.
        batches: Images at once, for sampling and the decoder.
        dtypes: Of the matrices.
        paths: Folders of peers by name; the empty text for an installed package.
        size: Preset whose shape is measured.
        device: Where.
        limit_seconds: How long one measurement may take.
        quick: Tiny models.
    """

    sections: Sequence[str]
    batches: Sequence[int]
    dtypes: Sequence[str]
    paths: dict[str, str]
    size: str = "aim-b"
    device: str = "cpu"
    limit_seconds: float = 60.0
    quick: bool = False

    def measurements(self) -> list[Measurement]:
        """All measurements, in order; ceilings first."""
        makers = {
            "ceilings": self._ceilings,
            "sampling": self._sampling,
            "training": self._training,
            "growth": self._growth,
            "startup": self._startup,
            "decoder": self._decoder,
        }
        return [each for section, maker in makers.items() if section in self.sections for each in maker()]

    def _base(self, section: str) -> Measurement:
        return Measurement(
            section=section,
            subject="",
            tokens=QUICK_TOKENS if self.quick else 256,
            size=self.size,
            device=self.device,
            limit_seconds=self.limit_seconds,
            quick=self.quick,
            paths=tuple(self.paths.items()),
        )

    def _peers(self) -> list[str]:
        return [name for name in self.paths if name in PEERS]

    def _engines(self, dtype: str) -> tuple[str, ...]:
        return ENGINES[self.device.partition(":")[0]][dtype]

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

    def _training(self) -> Iterator[Measurement]:
        base = self._base("training")
        for dtype in self.dtypes:
            if dtype != "int8":
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
        yield from (replace(base, subject="load", dtype=dtype) for dtype in self.dtypes if dtype != "int8")

    def _decoder(self) -> Iterator[Measurement]:
        base = self._base("decoder")
        for batch in self.batches:
            for dtype in self.dtypes:
                if dtype != "int8":
                    for subject, variants in DECODER_VARIANTS.items():
                        if subject == "aim" or "llamagen" in self.paths:
                            yield from (
                                replace(base, subject=subject, variant=variant, batch=batch, dtype=dtype)
                                for variant in variants
                            )
