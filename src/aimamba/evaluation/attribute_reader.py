"""A small network that reads the attributes of avatars from their pixels, trained on real ones.

It is trained when it is first needed and kept in the cache. For every attribute of every style it has a head; a head
learns from the images of its style alone, and is read where the network sees that style. Most of the images are shown
blurred and noisy: it is to read what can be seen on the soft images of a decoder too.

Shape letters: B images, s side of an image, K values of all heads.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from aimamba.data.captioned import CaptionedAvatars
from aimamba.evaluation.attributes import KIND
from aimamba.evaluation.measure import to_channels_first
from aimamba.evaluation.sources import Source
from aimamba.evaluation.stored import StoredArrays
from aimamba.seeds import seeded

TRAINED_ON = 2000
"""Avatars of each style to train on."""

_SIDE = 64  # of the images that the network takes
_WIDTH = 16
_EPOCHS, _BATCH, _RATE, _DECAY = 8, 64, 3e-3, 1e-2
_SOFT = 0.7  # share of the images that are shown blurred and noisy
_BLURRED_TO = 20  # pixels a side, at least
_NOISE, _STAINS = 0.1, 0.15  # most of each, of a pixel and of 4 x 4 pixels; values run from -1 to 1
_READ_AT_ONCE = 64
_SETTINGS = {
    "side": _SIDE,
    "width": _WIDTH,
    "epochs": _EPOCHS,
    "batch": _BATCH,
    "rate": _RATE,
    "decay": _DECAY,
    "soft": _SOFT,
    "blurred to": _BLURRED_TO,
    "noise": _NOISE,
    "stains": _STAINS,
}

Head = tuple[str, str]
"""A style and the name of an attribute."""


class AttributeReader:
    """Reads the attributes of avatars."""

    def __init__(self, styles: Sequence[str], values: dict[Head, tuple[str, ...]]) -> None:
        """Build the network, not trained yet.

        Args:
            styles: All styles.
            values: The values of every attribute of every style.
        """
        self._styles, self._values = tuple(styles), values
        self._sizes = [len(self._styles), *map(len, values.values())]
        self.network = _Network(sum(self._sizes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def read(self, images: UInt8[np.ndarray, "b s s 3"]) -> list[dict[str, str]]:
        """Return the style of every image, and name and value of the attributes of that style."""
        with torch.no_grad():
            parts = to_channels_first(images).split(_READ_AT_ONCE)
            scores = torch.cat([self.network.eval()(_prepared(part)) for part in parts])
        style, *rest = (part.argmax(dim=1).tolist() for part in scores.split(self._sizes, dim=1))
        found = [{KIND: self._styles[number]} for number in style]
        for (of, name), chosen in zip(self._values, rest, strict=True):
            for attributes, number in zip(found, chosen, strict=True):
                if attributes[KIND] == of:
                    attributes[name] = self._values[of, name][number]
        return found

    def read_all(self, source: Source, *, progress: bool = False) -> list[dict[str, str]]:
        """Return what ``read`` does for all images of a source."""
        found: list[dict[str, str]] = []
        with tqdm(total=len(source), desc=f"attributes of {source.name}", unit="image", disable=not progress) as bar:
            for images in source.batches(_READ_AT_ONCE):
                found += self.read(images)
                bar.update(len(images))
        return found

    def fit(self, images: CaptionedAvatars, *, progress: bool = False) -> None:
        """Train the network, in the same way every time."""
        targets = torch.tensor([self._target(images, index) for index in range(len(images))])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _init(self.network)
            optimiser = torch.optim.AdamW(self.network.parameters(), lr=_RATE, weight_decay=_DECAY)
            batches, generator = list(_batches(len(images))), seeded(1)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, len(batches), pct_start=0.2)
            for chosen in tqdm(batches, desc="learning to read attributes", unit="step", disable=not progress):
                shown = _softened(_prepared(to_channels_first(images.take(chosen.tolist()))), generator)
                scores = self.network.train()(shown)
                loss = self._loss(scores, targets[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()

    def _target(self, images: CaptionedAvatars, index: int) -> list[int]:
        """Return the number of the value of every head, -1 where the head is of another style."""
        attributes = images.attributes(index)
        style = attributes[KIND]
        heads = (values.index(attributes[name]) if of == style else -1 for (of, name), values in self._values.items())
        return [self._styles.index(style), *heads]

    def _loss(self, scores: Float[Tensor, "b k"], targets: Int[Tensor, "b h"]) -> Tensor:
        heads = zip(scores.split(self._sizes, dim=1), targets.unbind(1), strict=True)
        losses = [F.cross_entropy(head, wanted, ignore_index=-1, reduction="sum") for head, wanted in heads]
        return torch.stack(losses).sum() / len(scores)


def trained_reader(images: CaptionedAvatars, *, progress: bool = False) -> AttributeReader:
    """Return the reader that is trained on some avatars: from the cache, or trained now.

    Args:
        images: Avatars to train on, not those to measure.
        progress: Show a bar on stderr.
    """
    values: dict[Head, set[str]] = {}
    for index in range(len(images)):
        attributes = images.attributes(index)
        for name, value in attributes.items():
            if name != KIND:
                values.setdefault((attributes[KIND], name), set()).add(value)
    reader = AttributeReader(images.class_names, {head: tuple(sorted(some)) for head, some in values.items()})
    stored = StoredArrays("attributes", {"pictures": images.identity, "reader": _SETTINGS, "torch": torch.__version__})
    state = reader.network.state_dict()
    found = stored.load({name: tuple(tensor.shape) for name, tensor in state.items()})
    if found is not None:
        reader.network.load_state_dict({name: torch.from_numpy(array) for name, array in found[0].items()})
        return reader
    reader.fit(images, progress=progress)
    stored.store({name: tensor.numpy() for name, tensor in reader.network.state_dict().items()})
    return reader


class _Network(nn.Module):
    """Convolutions down to 8 x 8 points: where things are is read from all of them, and textures from their mean."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        narrow, wide = 2 * _WIDTH, 4 * _WIDTH
        self.points = nn.Sequential(
            *_layer(3, _WIDTH, 2), *_layer(_WIDTH, narrow, 2), *_layer(narrow, narrow, 1), *_layer(narrow, wide, 2)
        )
        self.textures = nn.Sequential(*_layer(wide, wide, 1))
        self.places = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(wide * (_SIDE // 8) ** 2, 128), nn.ReLU())
        self.heads = nn.Linear(128 + 2 * wide, outputs)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Return a score for every value of every head."""
        points = self.points(images)
        textures = self.textures(points).flatten(2)
        return self.heads(torch.cat([self.places(points), textures.amax(dim=2), textures.mean(dim=2)], dim=1))


def _layer(inputs: int, width: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()


def _init(network: _Network) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            layer.reset_parameters()


def _prepared(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 h w"]:
    floats = images.float() / 127.5 - 1
    if floats.shape[-1] != _SIDE:
        floats = F.interpolate(floats, _SIDE, mode="bilinear", antialias=True)
    return floats.contiguous(memory_format=torch.channels_last)


def _softened(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Return images most of which are blurred and noisy, each to another degree."""

    def draw(most: float) -> float:
        return most * torch.rand((), generator=generator).item()

    def noise(side: int) -> Float[Tensor, "1 3 h w"]:
        return F.interpolate(torch.randn(1, 3, side, side, generator=generator), _SIDE, mode="bilinear")

    soft = images.clone()
    for image in soft.split(1):
        if draw(1.0) < _SOFT:
            small = F.interpolate(
                image, _BLURRED_TO + int(draw(float(_SIDE - _BLURRED_TO))), mode="bilinear", antialias=True
            )
            image.copy_(F.interpolate(small, _SIDE, mode="bicubic"))
            image.add_(draw(_STAINS) * noise(_SIDE // 4)).add_(draw(_NOISE) * noise(_SIDE)).clamp_(-1, 1)
    return soft.contiguous(memory_format=torch.channels_last)


def _batches(count: int) -> Iterator[Int[Tensor, " b"]]:
    """Yield the images of every step: all in another order in every epoch."""
    generator = seeded(0)
    for _ in range(_EPOCHS):
        order = torch.randperm(count, generator=generator)
        yield from (part for part in order.split(_BATCH) if len(part) == min(_BATCH, count))
