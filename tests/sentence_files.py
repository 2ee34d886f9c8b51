"""A small random BERT and its tokenizer, in a folder as that of all-MiniLM-L6-v2."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "cat",
    "dog",
    "house",
    "with",
    "on",
    "of",
    "green",
    "hat",
    "big",
    "small",
    "and",
    "in",
]
WIDTH = 12


def tensors(*, width: int = WIDTH, layers: int = 2, positions: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make the weights, with the names of ``transformers``."""
    generator = torch.Generator().manual_seed(seed)
    inner, found = 2 * width, {}

    def norm(name: str) -> None:
        found[f"{name}.weight"] = 1 + 0.3 * torch.randn(width, generator=generator)
        found[f"{name}.bias"] = 0.3 * torch.randn(width, generator=generator)

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"] = 0.4 * torch.randn(outputs, inputs, generator=generator)
        found[f"{name}.bias"] = 0.4 * torch.randn(outputs, generator=generator)

    for name, count in (("word", len(vocabulary())), ("position", positions), ("token_type", 2)):
        found[f"embeddings.{name}_embeddings.weight"] = torch.randn(count, width, generator=generator)
    norm("embeddings.LayerNorm")
    for number in range(layers):
        layer = f"encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{layer}.attention.{part}", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", width, inner)
        linear(f"{layer}.output.dense", inner, width)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", width, width)
    found["embeddings.position_ids"] = torch.arange(positions)[None]
    return found


def vocabulary() -> dict[str, int]:
    """Return the tokens and their numbers."""
    letters = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[",
        "]",
        *letters,
        *(f"##{letter}" for letter in letters),
        *WORDS[1:],
    ]
    return {piece: number for number, piece in enumerate(pieces)}


def tokenizer() -> dict[str, Any]:
    """Return what ``tokenizer.json`` holds; it would cut and pad, as MiniLM's does."""
    special = [
        {"id": number, "content": piece, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for piece, number in list(vocabulary().items())[:4]
    ]
    return {
        "version": "1.0",
        "truncation": {"max_length": 5, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 7}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
        | {"pad_to_multiple_of": None},
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
        | {"strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
        | {"max_input_chars_per_word": 100, "vocab": vocabulary()},
    }


def config(weights: dict[str, torch.Tensor], *, heads: int = 3) -> dict[str, Any]:
    """Return what ``config.json`` says of weights."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": weights["embeddings.LayerNorm.weight"].numel(),
        "intermediate_size": weights["encoder.layer.0.intermediate.dense.bias"].numel(),
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": len(weights["embeddings.position_embeddings.weight"]),
        "num_attention_heads": heads,
        "num_hidden_layers": sum(name.endswith("self.query.bias") for name in weights),
        "type_vocab_size": len(weights["embeddings.token_type_embeddings.weight"]),
        "vocab_size": len(weights["embeddings.word_embeddings.weight"]),
    }


def write_encoder(folder: Path, **settings: Any) -> Path:
    """Write an encoder into a new folder; settings are those of ``tensors``."""
    folder.mkdir(parents=True)
    weights = tensors(**settings)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(weights)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    return folder
