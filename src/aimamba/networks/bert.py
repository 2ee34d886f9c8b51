"""BERT (Devlin et al., arXiv 1810.04805) without its heads, with weights as ``transformers`` saves them.

all-MiniLM-L6-v2, a sentence encoder, is one of 6 layers and 384 features. The network is never trained here, so it has
no dropout. It takes texts of one length, and so needs no mask. It computes in float32 under autocast too.

Shape letters: B texts, n tokens of each, F features.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.checkpoints.fill import fill
from aimamba.checkpoints.weights import WeightsFile
from aimamba.devices import without_autocast
from aimamba.documents import DocumentError, read_json
from aimamba.errors import CheckpointError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

_EXPECTED = "expected BERT's layout, as of all-MiniLM-L6-v2"


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of a BERT.

    Attributes:
        vocabulary: Number of tokens.
        positions: Most tokens of a text.
        types: Number of token types; a single text has the first.
        width: Features of a token (F).
        inner: Features inside a feed-forward layer.
        layers: Number of layers.
        heads: Heads of the attention.
        eps: Added to the variance in a layer norm.
    """

    vocabulary: int
    positions: int
    types: int
    width: int
    inner: int
    layers: int
    heads: int
    eps: float = 1e-12


class Bert(nn.Module):
    """The network, up to the vectors of the last layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.types = nn.Embedding(config.types, config.width)
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n f"]:
        """Return the vectors of all tokens of texts of one length."""
        with without_autocast(tokens.device):
            x = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.types.weight[0]
            x = self.norm(x)
            for layer in self.layers:
                x = layer(x)
        return x


class Layer(nn.Module):
    """Attention among all tokens and a feed-forward layer, each followed by a norm of its sum with its input."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, config.inner), nn.Linear(config.inner, width)
        self.attention_norm, self.norm = (nn.LayerNorm(width, config.eps) for _ in range(2))

    def forward(self, x: Float[Tensor, "b n f"]) -> Float[Tensor, "b n f"]:
        """Process all tokens."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = self.attention_norm(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm(x + self.down(F.gelu(self.up(x))))


def read_bert(folder: Path) -> Bert:
    """Load the network of a folder, frozen, in float32 and in evaluation mode.

    Sizes are those of the tensors. ``config.json``, if it is there, has to agree, and says the number of heads; without
    it there are 12 at 384 features, as MiniLM has, and otherwise one for each 64.

    Args:
        folder: Holds ``model.safetensors``, whose keys may begin with ``bert.`` or ``model.``.

    Raises:
        CheckpointError: A file is missing or damaged, holds another architecture, or NaN or infinity.
    """
    path = folder / WEIGHTS_FILE
    file = WeightsFile(path)
    outline = file.outline
    names = _names(outline, path)
    config = _config(folder, {ours: outline[theirs].shape for ours, theirs in names.items()})
    read = file.tensors(names.values())
    tensors = {
        ours: read[theirs].float() if read[theirs].is_floating_point() else read[theirs]
        for ours, theirs in names.items()
    }
    with torch.device("meta"):
        network = Bert(config)
    fill(network, tensors, where=str(path))
    for ours, theirs in names.items():
        if not tensors[ours].isfinite().all():
            raise CheckpointError(f"{path}: {theirs} holds NaN or infinity; fetch the file again")
    return network.requires_grad_(False).eval()


_PREFIX = re.compile(r"(?:(?:bert|model)\.)*")
_KEY = re.compile(r"(embeddings|encoder\.layer\.(\d{1,3}))\.([\w.]+)\.(weight|bias|gamma|beta)")
_EMBEDDINGS = dict(
    zip(
        ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"),
        ("words", "positions", "types", "norm"),
        strict=True,
    )
)
_LAYER = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}
_KINDS = {"gamma": "weight", "beta": "bias"}  # as the first checkpoints name those of a norm
_NOT_NEEDED = re.compile(r"embeddings\.(position|token_type)_ids|pooler\..*|cls\..*")  # constants, and heads


def _names(keys: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the key of each of our tensors.

    Raises:
        CheckpointError: A key is unknown, or two are for one tensor.
    """
    names: dict[str, str] = {}
    for key in keys:
        plain = _PREFIX.sub("", key, count=1)
        if _NOT_NEEDED.fullmatch(plain):
            continue
        match = _KEY.fullmatch(plain)
        part = None if match is None else (_LAYER if match[2] else _EMBEDDINGS).get(match[3])
        if match is None or part is None:
            raise CheckpointError(f"{path}: unknown key {key[:80]!r}; {_EXPECTED}")
        place = f"layers.{int(match[2])}." if match[2] else ""
        ours = f"{place}{part}.{_KINDS.get(match[4], match[4])}"
        if ours in names:
            raise CheckpointError(f"{path}: {names[ours]!r} and {key!r} are the same tensor of BERT; leave one")
        names[ours] = key
    return names


def _config(folder: Path, shapes: Mapping[str, torch.Size]) -> BertConfig:
    """Return the sizes of the tensors, after comparing them with ``config.json``.

    Raises:
        CheckpointError: They differ, or it is another architecture.
    """
    path = folder / CONFIG_FILE
    said = _said(path)
    tables = ("words.weight", "positions.weight", "types.weight", "layers.0.up.weight")
    for name in tables:
        if len(shapes.get(name, ())) != 2:
            raise CheckpointError(f"{folder / WEIGHTS_FILE}: no tensor for {name!r} of two axes; {_EXPECTED}")
    (vocabulary, width), (positions, _), (types, _), (inner, _) = (shapes[name] for name in tables)
    layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
    found = {
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
    }
    for name, size in found.items():
        if said.get(name, size) != size:
            raise CheckpointError(
                f"{path}: {name} is {_short(said[name])}, but {WEIGHTS_FILE} beside it has {size:,}; they do not "
                "belong together: fetch both again"
            )
    if not said and types < 2:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: one token type, as RoBERTa has; {_EXPECTED}, with two, or with a "
            f"{CONFIG_FILE} beside it"
        )
    heads = said.get("num_attention_heads", 12 if width == 384 else max(1, width // 64))
    if not isinstance(heads, int) or not 1 <= heads <= width or width % heads:
        raise CheckpointError(
            f"{path}: num_attention_heads must divide the {width} features, got {_short(heads)}; fetch it again"
        )
    eps = said.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise CheckpointError(f"{path}: layer_norm_eps must be from 0 to 1, got {_short(eps)}; fetch it again")
    return BertConfig(
        vocabulary=vocabulary,
        positions=positions,
        types=types,
        width=width,
        inner=inner,
        layers=layers,
        heads=heads,
        eps=float(eps),
    )


_MEANT = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


def _said(path: Path) -> dict[str, Any]:
    """Return what ``config.json`` says; nothing if it is not there.

    Raises:
        CheckpointError: It cannot be read, or is another architecture's.
    """
    if not path.exists():
        return {}
    try:
        said = read_json(path)
    except (DocumentError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: cannot be read ({reason}); fetch it again, or remove it") from error
    if not isinstance(said, dict):
        raise CheckpointError(f"{path}: expected an object with the sizes of BERT; fetch it again, or remove it")
    for name, meant in _MEANT.items():
        if said.get(name, meant) != meant:
            raise CheckpointError(f"{path}: {name} is {_short(said[name])}, expected {meant!r}; {_EXPECTED}")
    return said


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
