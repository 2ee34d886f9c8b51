"""Translate official checkpoints: key by key, with every width taken from the shapes.

There are two layouts:

* AiM's (``hp-l33/aim-base|large|xlarge``): ``mamba.*`` for the generator and, usually, ``vqvae.*`` for the tokenizer.
* LlamaGen's tokenizer (``vq_ds16_c2i.pt``): the names of ``vqvae.*`` without the prefix, flat or nested under
  ``"model"``.

A reader is a function from the file's config and tensors to our config and tensors, both plain mappings. Every key must
be known: an unknown one is an error, and a missing one is found when the model is filled. Readers only rename and stack
tensors, so they translate gradients too.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from aimamba.errors import CheckpointError

Settings = dict[str, Any]
Tensors = dict[str, Tensor]

_GENERATOR, _TOKENIZER = "mamba.", "vqvae."
_WORDS = "backbone.embeddings.word_embeddings.weight"
_HEAD = "lm_head.weight"

_GENERATOR_KEYS = (
    (_WORDS, "word_embedding.weight"),
    ("backbone.embeddings.position_embeddings.weight", "position_embedding.weight"),
    ("backbone.cls_embed.embedding_table.weight", "condition.table.weight"),
    ("backbone.adaln_group.1.{p}", "adaln.projection.{p}"),
    ("backbone.norm_f.weight", "norm.weight"),
    ("backbone.final_layer.norm_final.weight", "final_norm.weight"),
    ("backbone.final_layer.adaLN_modulation.1.{p}", "final_adaln.{p}"),
    ("backbone.layers.{i}.norm.weight", "blocks.{i}.norm.weight"),
    ("backbone.layers.{i}.adaLN_modulation.1.{p}", "adaln.projections.{i}.{p}"),
    ("backbone.layers.{i}.scale_shift_table", "adaln.table.{i}"),
    ("backbone.layers.{i}.mixer.in_proj.weight", "blocks.{i}.mixer.in_proj.weight"),
    ("backbone.layers.{i}.mixer.conv1d.{p}", "blocks.{i}.mixer.conv_{p}"),
    ("backbone.layers.{i}.mixer.dt_bias", "blocks.{i}.mixer.dt_bias"),
    ("backbone.layers.{i}.mixer.A_log", "blocks.{i}.mixer.A_log"),
    ("backbone.layers.{i}.mixer.D", "blocks.{i}.mixer.D"),
    ("backbone.layers.{i}.mixer.norm.weight", "blocks.{i}.mixer.norm.weight"),
    ("backbone.layers.{i}.mixer.out_proj.weight", "blocks.{i}.mixer.out_proj.weight"),
)

_TOKENIZER_KEYS = (
    ("quantize.embedding.weight", "codebook"),
    ("quant_conv.{p}", "to_code.{p}"),
    ("post_quant_conv.{p}", "from_code.{p}"),
    ("{s}.conv_in.{p}", "{s}.stem.{p}"),
    ("{s}.norm_out.{p}", "{s}.norm.{p}"),
    ("{s}.conv_out.{p}", "{s}.head.{p}"),
    ("{s}.mid.{i}.{l}.{p}", "{s}.middle.{i}.{l}.{p}"),
    ("{s}.mid.{i}.proj_out.{p}", "{s}.middle.{i}.out.{p}"),
    ("{s}.conv_blocks.{i}.res.{j}.nin_shortcut.{p}", "{s}.levels.{i}.residual.{j}.shortcut.{p}"),
    ("{s}.conv_blocks.{i}.res.{j}.{l}.{p}", "{s}.levels.{i}.residual.{j}.{l}.{p}"),
    ("{s}.conv_blocks.{i}.attn.{j}.proj_out.{p}", "{s}.levels.{i}.attention.{j}.out.{p}"),
    ("{s}.conv_blocks.{i}.attn.{j}.{l}.{p}", "{s}.levels.{i}.attention.{j}.{l}.{p}"),
    ("{s}.conv_blocks.{i}.downsample.conv.{p}", "{s}.levels.{i}.resample.{p}"),
    ("{s}.conv_blocks.{i}.upsample.conv.{p}", "{s}.levels.{i}.resample.{p}"),
)
_IGNORED_TOKENIZER_KEYS = ("quantize.codebook_used",)  # a record of recent codes, not a weight

_WILDCARDS = {
    "p": "weight|bias",
    "i": r"\d+",
    "j": r"\d+",
    "s": "encoder|decoder",
    "l": "norm|norm1|norm2|conv1|conv2|q|k|v",
}

# Options of the official config that change the model, and the only values that a released model has.
_RELEASED_OPTIONS: dict[str, tuple[Any, ...]] = {
    "d_intermediate": (0,),
    "attn_layer_idx": ([], None),
    "attn_cfg": ({}, None),
    "rms_norm": (True,),
    "residual_in_fp32": (True,),
    "tie_embeddings": (True,),
}
# The same for the options of its mixer, with mamba-ssm's defaults; `layer` has another default and must be there.
_MIXER_OPTIONS: dict[str, tuple[Any, ...]] = {
    "layer": ("Mamba2",),
    "d_ssm": (None,),
    "ngroups": (1,),
    "D_has_hdim": (False,),
    "rmsnorm": (True,),
    "norm_before_gate": (False,),
    "dt_limit": ([0.0, math.inf], (0.0, math.inf)),
    "bias": (False,),
    "conv_bias": (True,),
    "process_group": (None,),
}
# Options that only act on weights at the start, or on speed.
_OTHER_MIXER_OPTIONS = (
    *("conv_init", "A_init_range", "dt_min", "dt_max", "dt_init_floor"),
    *("chunk_size", "use_mem_eff_path", "sequence_parallel"),
)
_OTHER_OPTIONS = ("fused_add_norm", "pad_vocab_size_multiple", "token_drop", "mixer_drop", "mlp_drop")


def is_official(config: Mapping[str, Any] | None, keys: Iterable[str]) -> bool:
    """Whether a checkpoint has an official layout; the config of one of ours names its class.

    Args:
        config: The content of ``config.json``, or ``None`` for a bare file of weights.
        keys: Names of the tensors.
    """
    return config is None or "d_model" in config or any(key.startswith((_GENERATOR, _TOKENIZER)) for key in keys)


def keys_of_part(part: str, keys: Iterable[str]) -> list[str]:
    """Return the keys of an official checkpoint that the reader of ``part`` has to see: all but the other part's."""
    other = _GENERATOR if part == "tokenizer" else _TOKENIZER
    return [key for key in keys if not key.startswith(other)]


def aim_from_official(config: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> tuple[Settings, Tensors]:
    """Read the generator of an official AiM checkpoint, and ignore a tokenizer beside it.

    Args:
        config: The official ``config.json``, or ``None`` for a bare file of weights.
        tensors: The official state dict.

    Returns:
        Values for ``AiMConfig`` and a state dict for ``AiM``.

    Raises:
        CheckpointError: A key or an option is unknown, or config and shapes disagree.
    """
    official = {key.removeprefix(_GENERATOR): value for key, value in tensors.items() if not key.startswith(_TOKENIZER)}
    if _WORDS not in official:
        raise CheckpointError(f"no generator in this checkpoint: key '{_GENERATOR}{_WORDS}' is missing")
    head = official.pop(_HEAD, None)
    if head is not None and not torch.equal(head, official[_WORDS]):
        raise CheckpointError(f"'{_GENERATOR}{_HEAD}' differs from the word embedding it should be tied to")
    renamed = _rename(official, _GENERATOR_KEYS, "generator")
    settings = _aim_settings(renamed)
    _check_config(config, settings)

    tables = [renamed.pop(f"adaln.table.{i}") for i in range(settings["num_blocks"]) if f"adaln.table.{i}" in renamed]
    if tables:
        renamed["adaln.table"] = torch.cat(tables)
    for key in [key for key in renamed if key.endswith("conv_weight")]:
        if renamed[key].ndim == 3:  # (C, 1, K) of a grouped convolution to (C, K)
            renamed[key] = renamed[key].squeeze(1)
    return settings, renamed


def vq_from_official(config: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> tuple[Settings, Tensors]:
    """Read the tokenizer of an official AiM checkpoint, or LlamaGen's file, and ignore a generator beside it.

    Args:
        config: Not used: every setting is read off the shapes.
        tensors: The official state dict.

    Returns:
        Values for ``VQConfig`` and a state dict for ``VQModel``.

    Raises:
        CheckpointError: There is no tokenizer, or a key is unknown.
    """
    official = {key.removeprefix(_TOKENIZER): value for key, value in tensors.items() if not key.startswith(_GENERATOR)}
    if not official:
        raise CheckpointError("no tokenizer in this checkpoint; load the tokenizer's own")
    for key in _IGNORED_TOKENIZER_KEYS:
        official.pop(key, None)
    renamed = _rename(official, _TOKENIZER_KEYS, "tokenizer")
    return _vq_settings(renamed), renamed


def _rename(tensors: Tensors, keys: tuple[tuple[str, str], ...], part: str) -> Tensors:
    """Rename every key by the first pattern that matches it; wildcards are written ``{name}``."""

    def pattern(template: str) -> re.Pattern[str]:
        literal = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
        return re.compile(re.sub(r"\{(\w)\}", lambda match: f"(?P<{match[1]}>{_WILDCARDS[match[1]]})", literal))

    compiled = [(pattern(theirs), ours) for theirs, ours in keys]
    renamed, unknown = {}, []
    for key, tensor in tensors.items():
        fits = ((match, ours) for theirs, ours in compiled if (match := theirs.fullmatch(key)))
        match, ours = next(fits, (None, ""))
        if match is None:
            unknown.append(key)
        else:
            renamed[ours.format(**match.groupdict())] = tensor
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        names = ", ".join(repr(key) for key in unknown[:3])
        raise CheckpointError(f"unknown keys in the official {part} checkpoint: {names}{more}")
    return renamed


def _shape(tensors: Tensors, key: str, rank: int) -> torch.Size:
    """Return the shape of a tensor, which must be there, of this rank, and not empty."""
    if key not in tensors:
        raise CheckpointError(f"cannot read the model's widths: the tensor for {key!r} is missing from the checkpoint")
    shape = tensors[key].shape
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(
            f"cannot read the model's widths: the tensor for {key!r} has shape {list(shape)}, expected {rank} axes"
        )
    return shape


def _count(tensors: Tensors, prefix: str) -> int:
    """Count the different indices that follow ``prefix``."""
    return len({key[len(prefix) :].split(".")[0] for key in tensors if key.startswith(prefix)})


def _aim_settings(tensors: Tensors) -> Settings:
    """Read ``AiMConfig`` off the shapes."""
    vocab_size, width = _shape(tensors, "word_embedding.weight", 2)
    (inner,) = _shape(tensors, "blocks.0.mixer.norm.weight", 1)
    (heads,) = _shape(tensors, "blocks.0.mixer.dt_bias", 1)
    convolved, _, taps = _shape(tensors, "blocks.0.mixer.conv_weight", 3)
    settings = {
        "width": width,
        "num_blocks": _count(tensors, "blocks."),
        "vocab_size": vocab_size,
        "num_tokens": _shape(tensors, "position_embedding.weight", 2)[0] - 1,
        "num_classes": _shape(tensors, "condition.table.weight", 2)[0] - 1,
        "adaln": "block",
        "state_size": (convolved - inner) // 2,
        "head_width": inner // heads,
        "expand": inner // width,
        "conv_width": taps,
        "decode_position_shift": 1,
    }
    if "adaln.projection.weight" in tensors:
        groups = _shape(tensors, "adaln.projection.weight", 2)[0] // (3 * width)
        settings |= {"adaln": "group", "adaln_groups": groups}
    return settings


def _vq_settings(tensors: Tensors) -> Settings:
    """Read ``VQConfig`` off the shapes."""
    channels = _shape(tensors, "encoder.stem.weight", 4)[0]
    levels = _count(tensors, "encoder.levels.")
    widths = [_shape(tensors, f"encoder.levels.{i}.residual.0.conv2.weight", 4)[0] for i in range(levels)]
    codebook_size, codebook_dim = _shape(tensors, "codebook", 2)
    return {
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "num_res_blocks": _count(tensors, "encoder.levels.0.residual."),
        "z_channels": _shape(tensors, "encoder.head.weight", 4)[0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "attention": f"encoder.levels.{levels - 1}.attention.0.q.weight" in tensors,
    }


def _check_config(config: Mapping[str, Any] | None, settings: Settings) -> None:
    """Refuse options that no released model uses, and a config that contradicts the shapes."""
    if config is None:
        return
    sizes = {
        "d_model": settings["width"],
        "n_layer": settings["num_blocks"],
        "vocab_size": settings["vocab_size"],
        "num_tokens": settings["num_tokens"],
        "num_classes": settings["num_classes"],
        "adaln_group": settings["adaln"] == "group",
    }
    if settings["adaln"] == "group":
        sizes["num_groups"] = settings["adaln_groups"]
    for key, value in config.items():
        if key in _RELEASED_OPTIONS:
            if value not in _RELEASED_OPTIONS[key]:
                expected = _RELEASED_OPTIONS[key][0]
                raise CheckpointError(
                    f"official option '{key}' = {value!r} is not supported: released models have {expected!r}"
                )
        elif key in sizes:
            if value != sizes[key]:
                raise CheckpointError(f"official config has {key} = {value!r}, but the weights have {sizes[key]!r}")
        elif key == "ssm_cfg":
            _check_mixer(value, settings)
        elif key not in (*_OTHER_OPTIONS, "num_groups"):
            raise CheckpointError(f"unknown option {key!r} in the official config")


def _check_mixer(options: Any, settings: Settings) -> None:
    """Refuse options of the mixer that ours does not have, and sizes that contradict the shapes."""
    sizes = {"d_state": "state_size", "d_conv": "conv_width", "expand": "expand", "headdim": "head_width"}
    if not isinstance(options, Mapping):
        raise CheckpointError(f"official option 'ssm_cfg' = {str(options)[:80]!r} is not a JSON object")
    for key, value in {"layer": None, **options}.items():
        if key in sizes:
            if value != (actual := settings[sizes[key]]):
                raise CheckpointError(
                    f"official config has ssm_cfg.{key} = {str(value)[:80]}, but the weights have {actual}"
                )
        elif key in _MIXER_OPTIONS:
            if value not in _MIXER_OPTIONS[key]:
                raise CheckpointError(
                    f"official option 'ssm_cfg.{key}' = {str(value)[:80]!r} is not supported: this model has "
                    f"{_MIXER_OPTIONS[key][0]!r}"
                )
        elif key not in _OTHER_MIXER_OPTIONS:
            raise CheckpointError(f"unknown option {f'ssm_cfg.{key}'[:80]!r} in the official config")
