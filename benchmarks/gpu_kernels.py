"""What a decoding step does on a CUDA device, piece by piece, against the bytes that each piece must move.

    python benchmarks/gpu_kernels.py               every layout of every kernel; benchmarks/results/gpu_kernels.json
    python benchmarks/gpu_kernels.py --estimate    needs no device: bytes of a step, and the least time they can take

Every piece runs as in use: from a CUDA graph, many times on different memory, so that caches do not help.
"""

import argparse
import functools
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from aimamba import AiM
from aimamba.generation.engines.recorded_step import bytes_per_row
from aimamba.models import AIM_PRESETS
from aimamba.ops.mixer.weights import MixerWeights
from aimamba.ops.sampling import logits as plain

ROWS = (2, 16, 128)  # guided images have two rows each
POSITIONS = (32, 128, 255)
CAPACITY, TAPS, WIDTH, STATES = 257, 4, 64, 128
ENOUGH_BYTES = 512 << 20  # copies of a piece's memory hold at least so much, several times any cache
PRODUCTS = ((8192, 4), (8192, 8), (16384, 4), (16384, 8), (32768, 8))  # numbers and warps of a program
DTYPE = torch.bfloat16
DEVICE = "cuda"


def microseconds(calls: list[Callable[[], object]], *, repeats: int = 10) -> float:
    """Time of one call: the median over replays of a graph of all of them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    taken = []
    for _ in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(1000 * start.elapsed_time(end) / len(calls))
    return statistics.median(taken[2:])


def copies(size: int) -> int:
    """How many copies of ``size`` bytes a measurement runs over."""
    return max(4, min(200, -(-ENOUGH_BYTES // max(size, 1))))


def bandwidth() -> float:
    """Bytes a second that a plain copy moves, reading and writing."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / microseconds([lambda: target.copy_(source)]) * 1e6


def mixing_weights(heads: int) -> MixerWeights:
    """Random weights of a mixer's middle, as a bfloat16 model holds them."""
    inner, channels = heads * WIDTH, heads * WIDTH + 2 * STATES
    made = functools.partial(torch.randn, device=DEVICE)
    narrow = functools.partial(made, dtype=DTYPE)
    return MixerWeights(
        narrow(channels, TAPS), narrow(channels), made(heads) - 4, made(heads), made(heads), made(inner)
    )


def mixing_memory(form: str, heads: int, rows: int) -> list[torch.Tensor]:
    """Memory of one mixer; zeros cost as much as anything else."""
    made = functools.partial(torch.zeros, device=DEVICE)
    window = made(rows, TAPS, heads * WIDTH + 2 * STATES, dtype=DTYPE)
    if form == "state":
        return [window, made(rows, heads, WIDTH, STATES)]
    return [
        window,
        made(rows, CAPACITY, STATES, dtype=DTYPE),
        made(rows, heads, CAPACITY, WIDTH, dtype=DTYPE),
        made(rows, heads, CAPACITY),
    ]


def time_mixing(form: str, model: AiM, rows: int, position: int) -> list[dict[str, object]]:
    """Every layout of one form's kernel."""
    from aimamba.ops.mixer.triton import step as mixing  # noqa: PLC0415 - not for an estimate

    heads = model.config.width * model.config.expand // WIDTH
    size = rows * bytes_per_row(model, form, position)
    step = mixing.state_mixer_step if form == "state" else mixing.dual_mixer_step
    weights = mixing_weights(heads)
    projected = torch.randn(rows, 2 * heads * WIDTH + 2 * STATES + heads, device=DEVICE, dtype=DTYPE)
    place = torch.full((rows,), position, device=DEVICE)
    memories = [mixing_memory(form, heads, rows) for _ in range(copies(size))]
    if form == "state":
        launches = [mixing.Launch(group, 1, warps, 1) for group in (1, 2) for warps in (4, 8)]
    else:
        launches = [
            mixing.Launch(group, tokens, warps, 2)
            for group, tokens, warps in itertools.product((1, 2, 4, 8, 16), (8, 16, 32, 64, 128), (4, 8))
            if 8 <= group * tokens * WIDTH // (32 * warps) <= 64 and heads % group == 0
        ]
    return [
        {
            "kernel": form,
            "rows": rows,
            "position": position,
            "launch": launch._asdict(),
            "bytes": size,
            "microseconds": microseconds(
                [functools.partial(step, projected, weights, *memory, place, launch=launch) for memory in memories]
            ),
        }
        for launch in launches
    ]


def time_modulation(model: AiM, rows: int) -> list[dict[str, object]]:
    """Every layout of the kernel between blocks."""
    from aimamba.ops.norm.triton import residual as modulation  # noqa: PLC0415 - not for an estimate

    width = model.config.width
    size = rows * width * (4 + 4 + 5 * 2)
    made = functools.partial(torch.randn, device=DEVICE)
    sets = [
        (made(rows, width), made(rows, 3, width, dtype=DTYPE), made(rows, width, dtype=DTYPE), made(rows, 6).abs())
        for _ in range(min(200, copies(size)))
    ]
    weight = made(width)
    found = []
    for warps in (2, 4, 8, 16):
        calls = [
            functools.partial(
                modulation.residual_norm_step, residual, weight, three[:, 0], three[:, 1],
                mixed=mixed, gate=three[:, 2], squares=squares, inner=2 * width, launch=modulation.Launch(warps),
            )
            for residual, three, mixed, squares in sets
        ]  # fmt: skip
        found.append(
            {
                "kernel": "modulation",
                "rows": rows,
                "launch": {"warps": warps},
                "bytes": size,
                "microseconds": microseconds(calls),
            }
        )
    return found


def time_products(model: AiM, rows: int) -> list[dict[str, object]]:
    """The matrix products of a block and the head, by torch and, with few rows, by every layout of our kernel."""
    from aimamba.ops.linear.triton import linear as products  # noqa: PLC0415 - not for an estimate

    mixer, found = model.blocks[0].mixer, []
    shapes = {"in_proj": mixer.in_proj.weight.shape, "out_proj": mixer.out_proj.weight.shape}
    for name, (outputs, inputs) in (shapes | {"head": (model.config.vocab_size, model.config.width)}).items():
        size = 2 * (outputs * inputs + rows * (outputs + inputs))
        x = torch.randn(rows, inputs, device=DEVICE, dtype=DTYPE)
        weights = [torch.randn(outputs, inputs, device=DEVICE, dtype=DTYPE) for _ in range(copies(size))]
        kinds: dict[str, Callable[..., object]] = {"torch": F.linear}
        if rows <= products.MOST_ROWS:
            for launch in itertools.starmap(products.Launch, PRODUCTS):
                kinds[str(tuple(launch))] = functools.partial(products.linear, launch=launch)
            if name == "in_proj":
                kinds |= modulated_products(model, rows)
        for kind, product in kinds.items():
            took = microseconds([functools.partial(product, x, weight) for weight in weights])
            found.append({"kernel": name, "rows": rows, "launch": kind, "bytes": size, "microseconds": took})
    return found


def modulated_products(model: AiM, rows: int) -> dict[str, Callable[..., object]]:
    """The input projection with the norm before it in the same kernel."""
    from aimamba.ops.linear.triton import linear as products  # noqa: PLC0415 - not for an estimate

    width = model.config.width
    made = functools.partial(torch.randn, device=DEVICE)
    residual, norm_weight, squares = made(rows, width), made(width), made(rows, 2 * width // WIDTH).abs()
    shift, scale, gate = made(rows, 3, width, dtype=DTYPE).unbind(1)
    mixed = made(rows, width, dtype=DTYPE)

    def product(_: torch.Tensor, weight: torch.Tensor, *, launch: products.Launch) -> object:
        return products.residual_linear_step(
            residual, norm_weight, shift, scale, weight,
            mixed=mixed, gate=gate, squares=squares, inner=2 * width, launch=launch,
        )  # fmt: skip

    launches = itertools.starmap(products.Launch, PRODUCTS)
    return {f"with norm {tuple(launch)}": functools.partial(product, launch=launch) for launch in launches}


def time_sampling(rows: int) -> list[dict[str, object]]:
    """Guidance and the draw, for half as many images as rows, by torch and by our kernel."""
    from aimamba.ops.sampling.triton import logits as sampling  # noqa: PLC0415 - not for an estimate

    images = rows // 2
    logits = torch.randn(rows, 16384, device=DEVICE, dtype=DTYPE)
    given = {
        "uniform": torch.rand(images, device=DEVICE, dtype=torch.float64),
        "unconditional_rows": images + torch.arange(images, device=DEVICE),
        "scale": torch.full((images,), 2.0, device=DEVICE),
    }
    found = []
    for settings in ({}, {"top_k": 600}, {"top_p": 0.95}):
        for kind, draw in {"torch": plain.guided_sample, "kernel": sampling.guided_sample}.items():
            took = microseconds([functools.partial(draw, logits, **given, **settings)] * 20)
            name = " ".join(["sampling", *settings])
            found.append({"kernel": name, "rows": rows, "launch": kind, "bytes": logits.nbytes, "microseconds": took})
    return found


def estimate(bytes_a_second: float) -> None:
    """Print, for each preset, what a guided bfloat16 step of 256 codes moves and the least it can take."""
    tokens = 256
    print(f"at {bytes_a_second / 1e12:.1f} TB/s; mean over {tokens} tokens; gigabytes a step, milliseconds a step")
    print("preset   rows  weights  state  dual  least ms (dual)  images/s")
    for name, config in AIM_PRESETS.items():
        with torch.device("meta"):
            model = AiM(config).to(DTYPE)
        mixers = sum(
            mixer.weight.numel() for block in model.blocks for mixer in (block.mixer.in_proj, block.mixer.out_proj)
        )
        weights = 2 * (mixers + config.vocab_size * config.width)
        state, dual = (
            config.num_blocks * sum(bytes_per_row(model, form, t) for t in range(tokens)) / tokens
            for form in ("state", "dual")
        )
        for rows in ROWS:
            modulated = 2 * rows * config.num_blocks * 3 * config.width
            least = (weights + modulated + rows * dual) / bytes_a_second
            print(
                f"{name:8} {rows:4} {weights / 1e9:8.2f} {rows * state / 1e9:6.2f} {rows * dual / 1e9:5.2f}"
                f" {1000 * least:16.2f} {rows / 2 / (tokens * least):11.1f}"
            )


def main() -> None:
    """Measure, or estimate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimate", action="store_true", help="print bytes and floors; measures nothing")
    parser.add_argument(
        "--bandwidth", type=float, default=4.3, help="TB/s for --estimate (an H200 copies at about 4.3)"
    )
    parser.add_argument("--presets", nargs="+", default=list(AIM_PRESETS), choices=list(AIM_PRESETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu_kernels.json")
    options = parser.parse_args()
    if options.estimate:
        return estimate(options.bandwidth * 1e12)
    if not torch.cuda.is_available():
        parser.error("no CUDA device; --estimate needs none")
    rate = bandwidth()
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "bytes_per_second": rate}
    found: list[dict[str, object]] = []
    with torch.inference_mode():
        for rows in ROWS:
            found += time_sampling(rows)
        for name in options.presets:
            with torch.device("meta"):
                model = AiM(AIM_PRESETS[name]).to(DTYPE)
            for rows in ROWS:
                pieces = time_products(model, rows) + time_modulation(model, rows)
                pieces += time_mixing("state", model, rows, 128)
                for position in POSITIONS:
                    pieces += time_mixing("dual", model, rows, position)
                found += [{"preset": name, **piece} for piece in pieces]
                torch.cuda.empty_cache()
            write(options.out, machine, found, rate)  # as far as it got, should time run out
    print(json.dumps(machine))
    print_best(found)
    return None


def write(path: Path, machine: dict[str, object], found: list[dict[str, object]], rate: float) -> None:
    """Add each piece's share of the bandwidth and write all as JSON."""
    for each in found:
        each["share_of_bandwidth"] = each["bytes"] / (each["microseconds"] * 1e-6) / rate  # type: ignore[operator]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "pieces": found}, indent=1) + "\n", encoding="utf-8")


def print_best(found: list[dict[str, object]]) -> None:
    """The fastest layout of each piece."""
    kinds = ("preset", "kernel", "rows", "position")
    key = lambda each: tuple(str(each.get(kind, "")) for kind in kinds)  # noqa: E731
    for kind, group in itertools.groupby(sorted(found, key=key), key):
        best = min(group, key=lambda each: each["microseconds"])
        share = 100 * best["share_of_bandwidth"]
        print(*kind, f"{best['microseconds']:.2f} us, {share:.0f} % of bandwidth", best.get("launch", ""))


if __name__ == "__main__":
    main()
