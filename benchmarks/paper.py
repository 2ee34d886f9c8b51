"""The kernels on paper: ``python -m benchmarks.paper`` prints bytes, operations and instructions of each.

Needs no GPU. Bytes count every tensor that a kernel reads or writes once; times are the larger of bytes and operations
over the two rates. Registers, stack and shared memory are those of the binary that Triton compiles, and warps are how
many of them a multiprocessor has room for. Of instructions, those of each loop are in brackets. The kernels of a
training step come first, and then those of decoding steps (``benchmarks.decoding_kernels``).

Shape letters: B batch, L tokens, M = B L, D width, E inner width, H heads, P head width, N state size, C convolved
channels, Z projected features, Q tokens of a tile, T tiles.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from aimamba.models import AIM_PRESETS
from aimamba.ops.triton import unsupported
from benchmarks import decoding_kernels
from benchmarks.binaries import Usage, build

NARROW = "projected active tiles y dy dactive dprojected out dout mixed gate scale shift hidden dhidden dmixed dshift"
NARROW += " dscale dgate logits"
WIDE = "weight bias dt_bias A_log dt total since left skip apart within same dtiles later sums inverses residual"
WIDE += " new_residual dnew dresidual dweights dbefores losses before firsts"
WHOLE = "L T M width groups gate_stride scale_stride shift_stride parts"
_PLAIN = (4, 3)  # warps and stages of kernels that are launched without a choice


@dataclass(frozen=True)
class Row:
    """One kernel, or several that belong together."""

    name: str
    megabytes: float
    gigaflop: float = 0.0
    usages: list[Usage] = field(default_factory=list)

    def microseconds(self, bandwidth: float, rate: float) -> float:
        """Return the least time at ``bandwidth`` in TB/s and ``rate`` in TFLOP/s."""
        return max(self.megabytes / bandwidth, 1000 * self.gigaflop / rate)

    def cells(self, bandwidth: float, rate: float) -> str:
        """Return the row as Markdown."""
        registers = ", ".join(f"{u.registers}" + (f" + {u.stack} B" if u.stack else "") for u in self.usages)
        warps = ", ".join(str(usage.warps) for usage in self.usages)
        counts = ", ".join(f"{u.instructions}" + "".join(f" ({loop})" for loop in u.loops) for u in self.usages)
        flop = f"{self.gigaflop:.1f}" if self.gigaflop else ""
        spent = f"{self.microseconds(bandwidth, rate):.0f}"
        return f"| {self.name} | {self.megabytes:.0f} | {flop} | {spent} | {registers} | {warps} | {counts} |"


class Shape:
    """The sizes of a training step of a preset with ``batch`` images."""

    def __init__(self, preset: str, batch: int, tokens: int) -> None:
        config = AIM_PRESETS[preset]
        self.blocks, self.vocabulary = config.num_blocks, config.vocab_size
        self.B, self.L, self.M = batch, config.num_tokens, batch * config.num_tokens
        self.D, self.E, self.P, self.N = config.width, config.inner, config.head_width, config.state_size
        self.H, self.C = self.E // self.P, self.E + 2 * self.N
        self.Z = self.E + self.C + self.H
        self.Q, self.T = tokens, -(-self.L // tokens)
        self.pairs = self.B * self.T * (self.T + 1) // 2 * self.Q * self.Q  # of tokens, in tiles that are not skipped


def compiled(
    kernel: Any, sizes: Mapping[str, Any], warps: int, stages: int, capability: int, registers: int | None = None
) -> Usage:
    """Compile a kernel for a GPU, without one, and return what its binary takes."""
    types = dict.fromkeys(NARROW.split(), "*bf16") | dict.fromkeys(WIDE.split(), "*fp32")
    types |= dict.fromkeys(WHOLE.split(), "i32") | {"eps": "fp32", "factor": "fp32", "targets": "*i64"}
    return build(kernel, types, sizes, warps, stages, capability, registers=registers).usage


def _launched(kernel: Any, sizes: Mapping[str, Any], launch: Any, capability: int) -> Usage:
    return compiled(kernel, sizes, launch.warps, launch.stages, capability, launch.registers)


def _normed(kernel: Any, sizes: Mapping[str, Any], launch: Any, capability: int) -> Usage:
    sizes = {**sizes, "TOKENS": launch.tokens, "STAGES": launch.stages}
    return compiled(kernel, sizes, launch.warps(sizes["WIDE"]), 1, capability, launch.registers)


def forward_rows(s: Shape, capability: int) -> Iterator[Row]:
    """Yield the kernels of a block's forward pass."""
    from aimamba.ops.norm.triton import gated  # noqa: PLC0415
    from aimamba.ops.ssd.triton import quadratic  # noqa: PLC0415

    yield Row("norm between blocks", 12 * s.M * s.D / 1e6, usages=_norm(s, capability, last=False))
    yield _product("in_proj", s.M, s.D, s.Z)
    yield from _again(s, capability)
    scan = _launched(quadratic._output_kernel, _pair_sizes(s), quadratic.LAUNCHES[torch.bfloat16].output, capability)
    yield Row("scan", (4 * s.M * s.E + 2 * s.pairs) / 1e6, _of_heads(s), [scan])
    sizes = {"Z": s.Z, "E": s.E, "WIDE": _wide(s.E)}
    gate = _normed(gated._gated_norm_kernel, sizes, gated.FORWARD, capability)
    yield Row("gated norm", 6 * s.M * s.E / 1e6, usages=[gate])
    yield _product("out_proj", s.M, s.E, s.D)


def backward_rows(s: Shape, capability: int) -> Iterator[Row]:
    """Yield the kernels of a block's backward pass."""
    from aimamba.ops.conv.triton import causal  # noqa: PLC0415
    from aimamba.ops.norm.triton import gated  # noqa: PLC0415
    from aimamba.ops.ssd.triton import quadratic, quadratic_backward  # noqa: PLC0415

    yield Row("norm between blocks", 18 * s.M * s.D / 1e6, usages=_norm_backward(s, capability, last=False))
    sizes = {"Z": s.Z, "E": s.E, "WIDE": _wide(s.E)}
    gate = _normed(gated._gated_norm_backward_kernel, sizes, gated.BACKWARD, capability)
    yield Row("gated norm", 10 * s.M * s.E / 1e6, usages=[gate])
    for row in _again(s, capability):
        yield Row(f"{row.name}, again", row.megabytes, row.gigaflop, row.usages)
    launches = quadratic.LAUNCHES[torch.bfloat16]
    inputs = _launched(quadratic_backward._inputs_kernel, _pair_sizes(s), launches.inputs, capability)
    sums = 8 * s.M * s.H  # two for every token and head
    yield Row("scan: inputs", (6 * s.M * s.E + 2 * s.pairs + sums) / 1e6, _of_heads(s), [inputs])
    group = max(each for each in range(1, s.H // launches.pair_groups + 1) if s.H % each == 0)
    gradient = 4 * (s.H // group)  # bytes for each pair
    sizes, near = _pair_sizes(s) | {"GROUP": group}, s.M * s.Q  # pairs of tokens in one tile
    within = _launched(quadratic_backward._within_kernel, sizes, launches.within, capability)
    moved = 4 * s.M * s.E + (2 + gradient) * near + sums
    yield Row("scan: pairs in a tile", moved / 1e6, _of_heads(s) * near / s.pairs, [within])
    apart = _launched(quadratic_backward._apart_kernel, sizes | {"WIDE_T": s.T}, launches.apart, capability)
    far = s.pairs - near
    later = 4 * far // s.Q * s.H  # a sum for every token, head and earlier tile
    moved = 4 * s.M * s.E * (s.T - 1) / s.T + (2 + gradient) * far + later
    yield Row("scan: pairs apart", moved / 1e6, _of_heads(s) * far / s.pairs, [apart])
    similar = gradient * s.pairs
    shared = compiled(quadratic_backward._projections_kernel, _shared_sizes(s), *_PLAIN, capability)
    yield Row("scan: B and C", (similar + 8 * s.M * s.N) / 1e6, 4 * s.pairs * s.N / 1e9, [shared])
    sizes = {"Z": s.Z, "START": s.Z - s.H, "H": s.H, "Q": s.Q, "WIDE_T": s.T}
    steps = compiled(quadratic_backward._steps_backward_kernel, sizes, 1, 3, capability)
    yield Row("scan: steps", (later + 24 * s.M * s.H) / 1e6, usages=[steps])
    launch = causal.BACKWARD
    convolution = compiled(causal._convolution_backward_kernel, _conv_sizes(s, launch), launch.warps, 1, capability)
    yield Row("convolution", 6 * s.M * s.C / 1e6, usages=[convolution])
    for row in (_product("in_proj", s.M, s.D, s.Z), _product("out_proj", s.M, s.E, s.D)):
        yield Row(f"{row.name}, both gradients", 2 * row.megabytes, 2 * row.gigaflop)


def last_rows(s: Shape, capability: int) -> Iterator[Row]:
    """Yield the kernels that follow the last block, forward and backward."""
    from aimamba.ops.loss.triton import cross_entropy  # noqa: PLC0415

    yield Row("last norms", 12 * s.M * s.D / 1e6, usages=_norm(s, capability, last=True))
    product = _product("head", s.M, s.D, s.vocabulary)
    yield product
    wide = _wide(s.vocabulary)
    sizes = {"V": s.vocabulary, "WIDE": wide, "LEARNING": True}
    loss = compiled(cross_entropy._cross_entropy_kernel, sizes, cross_entropy.warps_of(wide, 2), 1, capability)
    yield Row("cross entropy", 4 * s.M * s.vocabulary / 1e6, usages=[loss])
    yield Row(f"{product.name}, both gradients", 2 * product.megabytes, 2 * product.gigaflop)
    yield Row("last norms, backward", 14 * s.M * s.D / 1e6, usages=_norm_backward(s, capability, last=True))


def _norm(s: Shape, capability: int, *, last: bool) -> list[Usage]:
    from aimamba.ops.norm.triton import modulated  # noqa: PLC0415

    sizes = {"D": s.D, "WIDE": _wide(s.D), "ADD": True, "BEFORE": last}
    return [_normed(modulated._modulated_norm_kernel, sizes, modulated.FORWARD, capability)]


def _norm_backward(s: Shape, capability: int, *, last: bool) -> list[Usage]:
    """After the last block nothing else reads the residual."""
    from aimamba.ops.norm.triton import modulated  # noqa: PLC0415

    launch, given = modulated.BACKWARD, {"D": s.D, "ADD": True, "BEFORE": last}
    sizes = given | {"WIDE": _wide(s.D), "NEW": not last}
    gradients = _normed(modulated._modulated_norm_backward_kernel, sizes, launch, capability)
    sizes = {"WIDE_G": s.L // launch.tokens, "COLUMNS": modulated._COLUMNS}
    return [gradients, compiled(modulated._modulation_sums_kernel, given | sizes, 4, 1, capability)]


def _again(s: Shape, capability: int) -> Iterator[Row]:
    """Yield what the backward pass computes again."""
    from aimamba.ops.conv.triton import causal  # noqa: PLC0415
    from aimamba.ops.ssd.triton import quadratic  # noqa: PLC0415

    launch = causal.FORWARD
    convolution = compiled(causal._convolution_kernel, _conv_sizes(s, launch), launch.warps, 1, capability)
    yield Row("convolution", 4 * s.M * s.C / 1e6, usages=[convolution])
    sizes = {"Z": s.Z, "START": s.Z - s.H, "H": s.H, "HEADS": quadratic.HEADS, "Q": s.Q}
    usages = [
        compiled(quadratic._steps_kernel, sizes, *_PLAIN, capability),
        compiled(quadratic._similarity_kernel, _shared_sizes(s), *_PLAIN, capability),
    ]
    moved = 10 * s.M * s.H + 4 * s.M * s.N + 2 * s.pairs
    yield Row("steps, similarities", moved / 1e6, 2 * s.pairs * s.N / 1e9, usages)


def _product(name: str, rows: int, inputs: int, outputs: int) -> Row:
    moved = 2 * (rows * inputs + rows * outputs + inputs * outputs)
    return Row(f"{name} (cuBLAS)", moved / 1e6, 2 * rows * inputs * outputs / 1e9)


def _of_heads(s: Shape) -> float:
    """Return the operations of one product of tiles with every head, in GFLOP."""
    return 2 * s.pairs * s.P * s.H / 1e9


def _wide(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _pair_sizes(s: Shape) -> dict[str, Any]:
    return {"C": s.C, "H": s.H, "P": s.P, "WIDE_P": _wide(s.P), "Q": s.Q}


def _shared_sizes(s: Shape) -> dict[str, Any]:
    return {"C": s.C, "E": s.E, "N": s.N, "WIDE_N": _wide(s.N), "Q": s.Q}


def _conv_sizes(s: Shape, launch: Any) -> dict[str, Any]:
    return {"Z": s.Z, "E": s.E, "C": s.C, "TAPS": 4, "TOKENS": launch.tokens, "CHANNELS": launch.channels}


def main() -> None:
    """Print the tables of training, of decoding, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="aim-b", choices=AIM_PRESETS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--bandwidth", type=float, default=4.1, help="TB/s, read and written")
    parser.add_argument("--rate", type=float, default=790.0, help="TFLOP/s of large bfloat16 products")
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--only", choices=("training", "decoding"))
    arguments = parser.parse_args()
    if reason := unsupported():
        parser.exit(2, f"benchmarks.paper: it compiles kernels with Triton, and {reason}\n")
    if arguments.only != "decoding":
        print_training(arguments)
    if arguments.only != "training":
        print("\nDecoding, token 128, bfloat16:\n")
        decoding_kernels.print_table(arguments.bandwidth, arguments.capability)
        print("\nForms of the SSD:\n")
        decoding_kernels.print_forms()


def print_training(arguments: argparse.Namespace) -> None:
    """Print a table for each pass of training, and what follows for a step."""
    from aimamba.ops.ssd.triton import quadratic  # noqa: PLC0415

    shape = Shape(arguments.size, arguments.batch, quadratic.LAUNCHES[torch.bfloat16].tokens)
    rates, step = (arguments.bandwidth, arguments.rate), 0.0
    print("| kernel | MB | GFLOP | us | registers | warps | instructions |\n|---|---:|---:|---:|---:|---:|---:|")
    parts = (
        ("forward", forward_rows, shape.blocks),
        ("backward", backward_rows, shape.blocks),
        ("the end", last_rows, 1),
    )
    for title, rows, times in parts:
        total, launches = 0.0, 0
        for row in rows(shape, arguments.capability):
            total += row.microseconds(*rates)
            launches += len(row.usages)
            print(row.cells(*rates))
        print(f"| **{title}**, {launches} kernels of ours | | | **{total:.0f}** | | | |")
        step += times * total / 1e3
    print(f"\n{shape.blocks} blocks and the end {step:.1f} ms: at most {shape.M / step * 1e3:,.0f} tokens/s, without")
    print("embeddings, modulations, the optimiser and all waiting")


if __name__ == "__main__":
    main()
