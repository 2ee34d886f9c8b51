"""What is measured of a generator that takes captions, as records, lines of a table and a figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from aimamba.evaluation.attributes import AttributeAccuracy
from aimamba.evaluation.caption_bits import CaptionBits
from aimamba.evaluation.metrics import Metrics
from aimamba.evaluation.plots import Series, beside, plot
from aimamba.evaluation.retrieval import Retrieval
from aimamba.evaluation.summary import summary


class AttributeBounds(NamedTuple):
    """What the network that reads attributes sees on real images: between what bounds the samples' numbers lie.

    Attributes:
        ceiling: On real images with their own captions.
        reconstructed: The same, with the images as the tokenizer reconstructs them: no sample can be better.
        floor: On real images with the captions of others: what a model reaches that ignores captions.
    """

    ceiling: AttributeAccuracy
    reconstructed: AttributeAccuracy
    floor: AttributeAccuracy

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {name: part._asdict() for name, part in self._asdict().items()}


@dataclass(frozen=True, kw_only=True)
class SampleMetrics:
    """What is measured of samples at one guidance scale.

    Attributes:
        cfg_scale: The scale.
        distances: Fréchet and kernel distance to the real images.
        retrieval: Whether the real image of its caption is the nearest to a sample.
        same_design: The same among images of the design that the caption asks for, where there are designs.
        attributes: How often the samples show what their captions mention, where that is known.
    """

    cfg_scale: float
    distances: Metrics
    retrieval: Retrieval
    same_design: Retrieval | None = None
    attributes: AttributeAccuracy | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return _present(
            cfg_scale=self.cfg_scale,
            attributes=self.attributes and self.attributes._asdict(),
            images_of_samples=self.retrieval._asdict(),
            images_of_samples_same_design=self.same_design and self.same_design._asdict(),
            **self.distances.to_dict(),
        )


@dataclass(frozen=True, kw_only=True)
class SetMetrics:
    """What is measured on one set of real images with captions.

    Attributes:
        name: Name of the set.
        images: Number of images with captions.
        samples: Samples at each scale.
        bits: Bits a token of real images with the right caption, a wrong one and none.
        likeliest: Whether the right caption of a real image is the likeliest one.
        bounds: Of the samples' attributes, where they are known.
        guidance: The samples, in rising order of the scale.
    """

    name: str
    images: int
    samples: int
    bits: CaptionBits
    likeliest: Retrieval
    bounds: AttributeBounds | None
    guidance: tuple[SampleMetrics, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return _present(
            images=self.images,
            samples=self.samples,
            bits_per_token=self.bits._asdict(),
            captions_of_real_images=self.likeliest._asdict(),
            attributes_of_real_images=self.bounds and self.bounds.to_dict(),
            guidance=[each.to_dict() for each in self.guidance],
        )

    def rows(self, network: str) -> list[tuple[str, str]]:
        """Return the lines of the table."""
        bits, rows = self.bits, [(self.name, f"{self.images:,} images with captions, {self.samples:,} samples")]
        text = f"{bits.right:.3f} with the right caption, {bits.wrong:.3f} with a wrong one, {bits.none:.3f} with none"
        rows.append(("  bits a token", f"{text} ({bits.images:,} images)"))
        rows.append(("  real images: right caption likeliest", _retrieved(self.likeliest)))
        if self.bounds is not None:
            named = zip(("real images", "reconstructions", "wrong captions"), self.bounds, strict=True)
            rows += [(f"  {name}: attributes, binding", _shown(found)) for name, found in named]
        for each in self.guidance:
            at = f"  samples at guidance {each.cfg_scale:g}:"
            if each.attributes is not None:
                rows.append((f"{at} attributes, binding", _shown(each.attributes)))
            rows.append((f"{at} right image nearest", _retrieved(each.retrieval)))
            if each.same_design is not None:
                rows.append((f"{at} in the same design", _retrieved(each.same_design)))
            rows += [(f"{at} {name}", value) for name, value in summary(network, each.distances)]
        if self.bounds is not None and (last := self.guidance[-1].attributes) is not None:
            ceiling = self.bounds.ceiling.by_attribute
            shares = [f"{name} {share:.1%} of {ceiling[name]:.1%}" for name, share in last.by_attribute.items()]
            rows.append((f"  attributes at guidance {self.guidance[-1].cfg_scale:g}", ", ".join(shares)))
        return rows


def figure(network: str, sets: Sequence[SetMetrics]) -> str:
    """Return an SVG of all that depends on the guidance scale, with the bounds of the first set that has some."""
    share, plots = (0.0, 1.0), []
    known = next((each.bounds for each in sets if each.bounds is not None), None)
    scales = [entry.cfg_scale for entry in sets[0].guidance]
    if known is not None:
        for key, title in (("accuracy", "attributes as mentioned"), ("binding", "all of a caption at once")):
            bounds = {"real images": known.ceiling, "wrong captions": known.floor}
            lines = _curves(sets, attrgetter(f"attributes.{key}"))
            for name, bound in bounds.items():
                lines.append(Series(name, [(scale, getattr(bound, key)) for scale in scales], dots=False))
            plots.append(plot(title, "guidance scale", "share", lines, y_range=share))
    lines = _curves(sets, attrgetter("retrieval.first"))
    plots.append(plot("right image nearest", "guidance scale", "share of samples", lines, y_range=share))
    for key, title in (("frechet", "Fréchet distance"), ("fid", "FID"), ("kid", "kernel distance")):
        if lines := _curves(sets, attrgetter(f"distances.{key}")):
            plots.append(plot(f"{network} {title}", "guidance scale", title, lines))
    return beside(plots)


def _curves(sets: Sequence[SetMetrics], value: Callable[[SampleMetrics], float | None]) -> list[Series]:
    found = []
    for each in sets:
        points = [(entry.cfg_scale, number) for entry in each.guidance if (number := value(entry)) is not None]
        found += [Series(each.name, points)] if points else []
    return found


def _present(**parts: Any) -> dict[str, Any]:
    """Return what is not None."""
    return {name: part for name, part in parts.items() if part is not None}


def _shown(found: AttributeAccuracy) -> str:
    return f"{found.accuracy:.1%}, {found.binding:.1%}"


def _retrieved(found: Retrieval) -> str:
    return f"{found.first:.1%}, among the first five {found.fifth:.1%} (of {found.candidates:.0f} candidates)"
