"""The kernels of a decoding step on paper: bytes, programs, and what their binaries take, without a GPU.

Bytes count every tensor that a kernel reads or writes once, after 128 tokens of an image in bfloat16; by fold and
replay, half-way between two folds of a longer image. Matrix products with many rows are cuBLAS's and not in the table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aimamba.generation.engines.recorded_step import FOLD_EVERY, Cache, Form, bytes_per_row, first_fold
from aimamba.models import AIM_PRESETS, AiM
from benchmarks.binaries import Binary, Usage, build

POSITION = 128
LENGTHS = (256, 1024, 4096)  # tokens of an image
SHOWN = (("aim-xl", 128), ("aim-xl", 4), ("aim-l", 2), ("aim-b", 2), ("aim-b", 128))  # sizes and rows
_NARROW = "projected conv_weight conv_bias window B_cache x_cache gated shift scale mixed gate hidden weight x y logits"
_NARROW += " opening words places"
_WIDE = "dt_bias A_log D norm_weight ssm weight_cache squares residual final_weight new_residual scales temperatures ks"
_WIDE += " min_ps folded carry"
_WHOLE = "capacity tap_stride shift_stride scale_stride gate_stride"  # multiples of 16
_TYPES = dict.fromkeys(_NARROW.split(), "*bf16") | dict.fromkeys(_WIDE.split(), "*fp32")
_TYPES |= dict.fromkeys(f"{_WHOLE} every parts inner outputs span k".split(), "i32")
_TYPES |= dict.fromkeys(["positions", "inputs", "position", "position_shift", "unconditional_rows", "tokens"], "*i64")
_TYPES |= {"eps": "fp32", "temperature": "fp32", "min_p": "fp32", "uniforms": "*fp64"}


class Step:
    """A decoding step of a preset in bfloat16.

    Args:
        preset: Name of the size.
        rows: Rows of the batch, two for each guided image.
        int8: Keep x of earlier tokens in 8 bits.
        capability: The GPU, 90 for Hopper.

    Attributes:
        D: Width; E inner width, H heads of width P, N state size, F projected features, V vocabulary.
    """

    def __init__(self, preset: str, rows: int, *, int8: bool = False, capability: int = 90) -> None:
        self.preset, self.rows, self.int8, self.capability = preset, rows, int8, capability
        config = AIM_PRESETS[preset]
        self.D, self.E, self.P, self.N = config.width, config.inner, config.head_width, config.state_size
        self.H, self.V = self.E // self.P, config.vocab_size
        self.F = 2 * self.E + 2 * self.N + self.H

    def mixer_sizes(self) -> dict[str, Any]:
        """Return the constants that the kernels of all forms of a mixer's step share."""
        taps = AIM_PRESETS[self.preset].conv_width
        return {"H": self.H, "P": self.P, "N": self.N, "TAPS": taps, "OVERLAP": True, "channel_stride": 1}

    def mixer_bytes(self, form: Form) -> int:
        """Return the bytes that the kernel of a form moves: memory, inputs, window and results."""
        model, cache = _model(self.preset), _cache(self.int8)
        position = first_fold(model, cache) + FOLD_EVERY // 2 if form == "folded" else POSITION
        channels = self.E + 2 * self.N
        window = 2 * channels * (model.config.conv_width + 1)
        return self.rows * (bytes_per_row(model, form, position, cache) + 2 * self.F + window + 2 * self.E)

    def built(self, kernel: Any, sizes: Mapping[str, Any], warps: int) -> Binary:
        """Compile a kernel for this step."""
        types = _TYPES | ({"x_cache": "*i8"} if self.int8 else {})
        return build(kernel, types, sizes, warps, 3, self.capability, frozenset(_WHOLE.split()))


class Row(NamedTuple):
    """One kernel of a step: its layout in words, its programs, the bytes that it moves and what its binary takes."""

    name: str
    layout: str
    programs: int
    bytes: int
    usage: Usage


def dual(step: Step) -> tuple[Any, Binary]:
    """Compile the dual form of a mixer's step; return its layout too."""
    from aimamba.ops.mixer.triton import step as mixer  # noqa: PLC0415

    launch = mixer.dual_launch(step.rows).fitted(step.H)
    sizes = mixer.sizes_of(launch, step.P, torch.int8 if step.int8 else torch.bfloat16)
    return launch, step.built(mixer._dual_kernel, step.mixer_sizes() | sizes, launch.warps)


def state(step: Step) -> tuple[Any, Binary]:
    """Compile the state form of a mixer's step; return its layout too."""
    from aimamba.ops.mixer.triton import step as mixer  # noqa: PLC0415

    launch = mixer.STATE.fitted(step.H)
    return launch, step.built(mixer._state_kernel, step.mixer_sizes() | {"GROUP": launch.heads}, launch.warps)


def folded(step: Step) -> tuple[Any, Binary]:
    """Compile fold and replay; return its layout too."""
    from aimamba.ops.mixer.triton import folded as mixer  # noqa: PLC0415

    launch = mixer.FOLDED.fitted(step.H)
    sizes = mixer.folded_sizes(launch, step.P, torch.int8 if step.int8 else torch.bfloat16)
    return launch, step.built(mixer._folded_kernel, step.mixer_sizes() | sizes, launch.warps)


def in_proj(step: Step) -> tuple[Any, Binary]:
    """Compile the input projection of few rows with the norm before it; return its division too."""
    from aimamba.ops.linear.triton import linear as products  # noqa: PLC0415

    even = _power(step.rows)
    division = products.divide(_weight(step.F, step.D), products.DEFAULT, kept=even)
    sizes = _tiles(division) | {"D": step.D, "ROWS": step.rows, "EVEN": even, "GROUPS": _power(step.H)}
    sizes |= {"ADD": True, "DIVIDE": True, "OVERLAP": True}
    return division, step.built(products._residual_kernel, sizes, products.DEFAULT.warps)


def out_proj(step: Step) -> tuple[Any, Binary]:
    """Compile the output projection of few rows; return its division too."""
    return _linear(step, step.D, step.E)


def head(step: Step) -> tuple[Any, Binary]:
    """Compile the head of few rows; return its division too."""
    return _linear(step, step.V, step.D)


def norm(step: Step) -> Binary:
    """Compile the norm between blocks."""
    from aimamba.ops.norm.triton import residual as norms  # noqa: PLC0415

    sizes = {"D": step.D, "BLOCK": _power(step.D), "PARTS": _power(step.H), "SPLITS": 4}
    sizes |= dict.fromkeys(("ADD", "DIVIDE", "OVERLAP"), True) | {"FINAL": False}
    return step.built(norms._norm_step_kernel, sizes, norms.DEFAULT.warps)


def embedding(step: Step) -> Binary:
    """Compile the input of the first block."""
    from aimamba.ops.embedding.triton import step as embed  # noqa: PLC0415

    sizes = {"D": step.D, "PREFIX": 0, "BLOCK": _power(step.D), "PLACED": True}
    return step.built(embed._embed_step_kernel, sizes, embed._WARPS)


def sampling(step: Step, *, top_k: bool) -> Binary:
    """Compile guidance and sampling."""
    from aimamba.ops.sampling.triton import logits as sample  # noqa: PLC0415

    block = _power(step.V)
    sizes = {"V": step.V, "BLOCK": block, "SPAN": min(block, sample._SPAN), "GUIDED": True, "TOP_K": top_k}
    sizes |= dict.fromkeys(("TEMPERATURES", "KS", "MIN_PS"), False)
    return step.built(sample._guided_sample_kernel, sizes, sample._WARPS)


def rows_of(step: Step) -> Iterator[Row]:
    """Yield every kernel of ours that a step launches, or could launch in another form."""
    from aimamba.ops.linear.triton import linear as products  # noqa: PLC0415

    launch, binary = dual(step)
    name = "dual form, int8" if step.int8 else "dual form"
    groups = step.H // launch.heads
    yield Row(name, _layout(launch), step.rows * groups, step.mixer_bytes("dual"), binary.usage)
    launch, binary = folded(step)
    name = "fold and replay, int8" if step.int8 else "fold and replay"
    yield Row(name, _layout(launch), step.rows * step.H, step.mixer_bytes("folded"), binary.usage)
    if step.int8:
        return
    launch, binary = state(step)
    yield Row("state form", _layout(launch), step.rows * step.H, step.mixer_bytes("state"), binary.usage)
    wide, narrow = 4 * step.rows * step.D, 2 * step.rows * step.D
    if step.rows <= products.MOST_ROWS:
        division, binary = in_proj(step)
        size = 2 * (step.F * step.D + step.rows * step.F) + 2 * wide + 4 * narrow
        yield Row("norm and in_proj", _shares(division), division.programs, size, binary.usage)
        division, binary = out_proj(step)
        size = 2 * (step.D * step.E + step.rows * (step.D + step.E))
        yield Row("out_proj", _shares(division), division.programs, size, binary.usage)
        division, binary = head(step)
        size = 2 * (step.V * step.D + step.rows * (step.V + step.D))
        yield Row("head", _shares(division), division.programs, size, binary.usage)
    else:
        yield Row("norm between blocks", "", step.rows, 2 * wide + (4 + 4) * narrow, norm(step).usage)
    yield Row("embedding", "", step.rows, wide + 2 * narrow, embedding(step).usage)
    size = 2 * step.rows * step.V
    yield Row("sampling", "", step.rows // 2, size, sampling(step, top_k=False).usage)
    yield Row("sampling of the top k", "", step.rows // 2, size, sampling(step, top_k=True).usage)


def print_table(bandwidth: float, capability: int) -> None:
    """Print the kernels of all shown sizes as Markdown.

    Args:
        bandwidth: TB/s, read and written.
        capability: The GPU, 90 for Hopper.
    """
    print("| kernel | layout | programs | MB | us | registers | stack, B | warps |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for preset, rows in SHOWN:
        print(f"| **{preset}, {rows} rows** | | | | | | | |")
        for int8 in (False, True):
            for row in rows_of(Step(preset, rows, int8=int8, capability=capability)):
                size, usage = row.bytes / 1e6, row.usage
                figures = f"{row.programs} | {size:.2f} | {size / bandwidth:.2f} | {usage.registers} | {usage.stack}"
                print(f"| {row.name} | {row.layout} | {figures} | {usage.warps} |")


def print_forms(preset: str = "aim-xl") -> None:
    """Print how many bytes each form of the SSD moves for a token of a row and block, in the mean over an image."""
    forms: tuple[tuple[str, Form, bool, int], ...] = (
        ("dual", "dual", False, 4),
        ("dual, x in 8 bits", "dual", True, 4),
        ("state", "state", False, 4),
        ("state, if it were bfloat16", "state", False, 2),
        ("fold and replay", "folded", False, 4),
        ("fold and replay, x in 8 bits", "folded", True, 4),
        ("fold and replay, if the state were bfloat16", "folded", False, 2),
    )
    print(f"| {preset}, MB for a token | " + " | ".join(f"{length:,} tokens" for length in LENGTHS) + " |")
    print("|---|" + "---:|" * len(LENGTHS))
    for name, form, int8, width in forms:
        means = " | ".join(
            f"{mean_bytes(preset, form, length, int8=int8, width=width) / 1e6:.2f}" for length in LENGTHS
        )
        print(f"| {name} | {means} |")


def mean_bytes(preset: str, form: Form, length: int, *, int8: bool = False, width: int = 4) -> float:
    """Return the bytes that a form moves for a token of a row and block, in the mean over an image.

    Args:
        preset: Name of the size, in bfloat16.
        form: Form of the SSD.
        length: Tokens of the image.
        int8: Cache x in 8 bits.
        width: Bytes of a number of the state. The engine has 4.
    """
    model, cache = _model(preset), _cache(int8)
    moved = sum(bytes_per_row(model, form, token, cache) for token in range(length))
    passes = 2 * length if form == "state" else 0  # how often the state is read or written
    if form == "folded":
        begun = max(0, length - first_fold(model, cache))
        passes = begun + 2 * (begun // FOLD_EVERY) + (length >= first_fold(model, cache))
    return (moved - (4 - width) * passes * model.config.inner * model.config.state_size) / length


def _model(preset: str) -> AiM:
    with torch.device("meta"):
        return AiM(replace(AIM_PRESETS[preset], num_blocks=1)).to(torch.bfloat16)


def _cache(int8: bool) -> Cache:
    return "int8" if int8 else "model"


def _linear(step: Step, outputs: int, inputs: int) -> tuple[Any, Binary]:
    from aimamba.ops.linear.triton import linear as products  # noqa: PLC0415

    weight = _weight(outputs, inputs)
    launch = products.launch_of(weight)
    division = products.divide(weight, launch)
    sizes = _tiles(division) | {"D": inputs, "ROWS": step.rows, "OVERLAP": True}
    return division, step.built(products._linear_kernel, sizes, launch.warps)


def _weight(outputs: int, inputs: int) -> Tensor:
    return torch.empty(outputs, inputs, device="meta", dtype=torch.bfloat16)


def _tiles(division: Any) -> dict[str, Any]:
    return {name.upper(): getattr(division, name) for name in ("block", "tiles", "shares", "parts", "lanes")}


def _layout(launch: Any) -> str:
    """Return a layout as the documents write it: heads, tokens, warps and stages of a program."""
    return f"({', '.join(str(number) for number in launch)})"


def _shares(division: Any) -> str:
    shared = f", {division.shares} warps each" if division.shares > 1 else ""
    return f"{division.tiles} tiles of {division.block} outputs{shared}"


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()
