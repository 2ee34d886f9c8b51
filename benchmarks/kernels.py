"""The kernels of a decoding or training step on CUDA, one at a time, next to the bytes that each has to move.

Every kernel runs as in use: from a CUDA graph, many times on different memory, so that caches do not help.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aimamba import AiM
from aimamba.generation.engines.recorded_step import FOLD_EVERY, Cache, Form, bytes_per_row, first_fold
from aimamba.ops.mixer.weights import MixerWeights
from aimamba.ops.sampling import logits as plain
from benchmarks.measurement import LAYOUTS, Measurement, SkippedError, first_line
from benchmarks.ours import aim_config
from benchmarks.timing_cuda import copies, microseconds
from benchmarks.training_kernels import time_training

POSITIONS = (32, 128, 255)
STEP, WHOLE_STEP = "step", ("dual", "products", "modulation")  # a subject for what a usual step needs
TRAINING = "training"  # a subject for the kernels of a training step
STATE_POSITION = 128  # the state has one size at every position
PRODUCTS = ((4096, 4), (8192, 4), (8192, 8), (16384, 8), (16384, 16))  # numbers of a tile, and warps of a program
FEW_ROWS = 8
REPLAYED = (FOLD_EVERY // 2, FOLD_EVERY - 1)  # tokens since the first fold; the second step folds again
FOLDED_LAYOUTS = ((1, 32, 8, 1), (1, 16, 8, 1), (1, 64, 8, 1))
DUAL_LAYOUTS = {  # heads, tokens, warps and stages of a program, for few rows and for many
    False: (
        (1, 64, 8, 1), (1, 128, 8, 1), (1, 64, 4, 1), (1, 32, 4, 1), (1, 64, 8, 3), (1, 32, 4, 3), (2, 64, 8, 1),
    ),
    True: (
        (16, 8, 4, 3), (16, 8, 4, 2), (16, 8, 4, 4), (16, 16, 4, 2), (16, 16, 4, 3), (16, 4, 4, 4), (16, 8, 2, 3),
        (16, 16, 2, 2), (8, 8, 2, 3), (8, 16, 4, 3), (4, 16, 4, 3),
    ),
}  # fmt: skip
DTYPE = torch.bfloat16
_COPY_BYTES = 1 << 30

Piece = dict[str, Any]
"""One timing: ``kernel``, ``rows``, ``position`` where it matters, ``launch``, ``bytes``, and ``microseconds`` or the
reason under ``failed``."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The decoding step whose kernels are timed.

    Attributes:
        model: The generator; only its shapes matter.
        rows: Rows in the batch, two for each guided image.
        device: Torch device.
        layouts: Time every launch layout instead of the default one.
    """

    model: AiM
    rows: int
    device: torch.device
    layouts: bool = False

    @property
    def inner(self) -> int:
        """Inner width of a mixer."""
        return self.model.config.inner

    @property
    def heads(self) -> int:
        """Heads of a mixer."""
        return self.inner // self.model.config.head_width


def measure_kernel(measurement: Measurement) -> dict[str, Any]:
    """Time one kind of kernel.

    Returns:
        A list of timings under ``pieces``; for the subject ``copy`` only ``bytes_per_second``, read and written.
    """
    device = torch.device(measurement.device)
    if device.type != "cuda":
        raise SkippedError("the kernels of a decoding step need a CUDA device")
    with torch.cuda.device(device), torch.inference_mode():
        if measurement.subject == "copy":
            return {"bytes_per_second": copy_rate(device)}
        with torch.device("meta"):
            model = AiM(aim_config(measurement)).to(DTYPE)
        if measurement.subject == TRAINING:
            layouts = measurement.variant == LAYOUTS
            return {"pieces": time_training(model, measurement.batch, device, layouts=layouts)}
        step = Step(model=model, rows=2 * measurement.batch, device=device, layouts=measurement.variant == LAYOUTS)
        kinds = WHOLE_STEP if measurement.subject == STEP else (measurement.subject,)
        return {"pieces": [piece for kind in kinds for piece in PIECES[kind](step)]}


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a plain copy reads and writes."""
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    run = functools.partial(torch.neg, source, out=target)  # a kernel: in a graph, a copy is the copy engine's work
    return 2 * source.nbytes / microseconds([run]) * 1e6


def time_mixing(step: Step, form: Form, positions: Iterable[int], cache: Cache = "model") -> list[Piece]:
    """Time the kernel between the two projections of a mixer, in one form of SSD, at positions inside an image.

    By fold and replay, which images of that length need not reach, positions count from the first fold.
    """
    from aimamba.ops.mixer.triton import folded  # noqa: PLC0415 - imports Triton
    from aimamba.ops.mixer.triton import step as mixing  # noqa: PLC0415

    kernels: dict[Form, Callable[..., object]] = {
        "state": mixing.state_mixer_step,
        "dual": mixing.dual_mixer_step,
        "folded": functools.partial(folded.folded_mixer_step, every=FOLD_EVERY),
    }
    kernel = kernels[form]
    weights = _mixer_weights(step)
    width = 2 * step.inner + 2 * step.model.config.state_size + step.heads
    projected = torch.randn(step.rows, width, device=step.device, dtype=DTYPE)
    pieces = []
    if form == "folded":
        positions = [first_fold(step.model, cache) + replayed for replayed in positions]
    else:
        last = step.model.config.num_tokens - 1
        positions = sorted({min(position, last) for position in positions})
    for position in positions:
        size = step.rows * bytes_per_row(step.model, form, position, cache)
        filled = torch.full((step.rows,), position, device=step.device)
        memories = [_mixer_memory(step, form, cache) for _ in range(copies(size))]
        for launch in mixing_launches(step, form, mixing.Launch):
            settings = {} if launch is None else {"launch": launch}
            calls = [functools.partial(kernel, projected, weights, *memory, filled, **settings) for memory in memories]
            label = "default" if launch is None else launch._asdict()
            pieces.append(
                _time(step, form if cache == "model" else f"{form}, {cache}", label, size, calls, position=position)
            )
    return pieces


def mixing_launches(step: Step, form: Form, layout: Callable[..., Any]) -> list[Any]:
    """Return every launch layout of a form's kernel that fits the model, or None for the default one."""
    if not step.layouts:
        return [None]
    if form == "state":
        return [layout(group, 1, warps, 1) for group in (1, 2) for warps in (4, 8)]
    if form == "folded":
        return list(itertools.starmap(layout, FOLDED_LAYOUTS))
    return [layout(*launch) for launch in DUAL_LAYOUTS[step.rows > FEW_ROWS] if step.heads % launch[0] == 0]


def time_modulation(step: Step) -> list[Piece]:
    """Time the kernel between blocks: residual, norm and modulation."""
    from aimamba.ops.norm.triton import residual as norms  # noqa: PLC0415 - imports Triton

    rows, width = step.rows, step.model.config.width
    size = rows * width * (4 + 4 + 5 * 2)
    made = functools.partial(torch.randn, device=step.device)
    sets = [
        (made(rows, width), made(rows, 3, width, dtype=DTYPE), made(rows, width, dtype=DTYPE), made(rows, 6).abs())
        for _ in range(copies(size))
    ]
    weight = made(width)
    pieces = []
    for launch in (norms.Launch(warps) for warps in (2, 4, 8, 16)) if step.layouts else (None,):
        settings: dict[str, Any] = {} if launch is None else {"launch": launch}
        calls = [
            functools.partial(
                norms.residual_norm_step, residual, weight, three[:, 0], three[:, 1],
                mixed=mixed, gate=three[:, 2], squares=squares, inner=step.inner, **settings,
            )
            for residual, three, mixed, squares in sets
        ]  # fmt: skip
        label = "default" if launch is None else launch._asdict()
        pieces.append(_time(step, "modulation", label, size, calls))
    return pieces


def time_products(step: Step) -> list[Piece]:
    """Time the matrix products of a block and of the head, with torch and, for few rows, with our kernel."""
    from aimamba.ops.linear.triton import linear as products  # noqa: PLC0415 - imports Triton

    mixer, config, pieces = step.model.blocks[0].mixer, step.model.config, []
    shapes = {"in_proj": mixer.in_proj.weight.shape, "out_proj": mixer.out_proj.weight.shape}
    for name, (outputs, inputs) in (shapes | {"head": (config.vocab_size, config.width)}).items():
        size = 2 * (outputs * inputs + step.rows * (outputs + inputs))
        x = torch.randn(step.rows, inputs, device=step.device, dtype=DTYPE)
        weights = [torch.randn(outputs, inputs, device=step.device, dtype=DTYPE) for _ in range(copies(size))]
        kinds: dict[str, Callable[..., object]] = {"torch": F.linear}
        if name == "out_proj" and step.rows > products.MOST_ROWS:
            kinds["in parts"] = products.split_linear
        if step.rows <= products.MOST_ROWS:
            launches = _product_launches(step, products.Launch)
            kinds |= {label: functools.partial(products.linear, **settings) for label, settings in launches.items()}
            if name == "in_proj":
                fused = _residual_product(step)
                kinds |= {
                    f"with norm {label}": functools.partial(fused, **settings) for label, settings in launches.items()
                }
        for kind, product in kinds.items():
            calls = [functools.partial(product, x, weight) for weight in weights]
            pieces.append(_time(step, name, kind, size, calls))
    return pieces


def time_sampling(step: Step) -> list[Piece]:
    """Time guidance and sampling, for half as many images as rows, with torch and with our kernel."""
    from aimamba.ops.sampling.triton import logits as sampling  # noqa: PLC0415 - imports Triton

    images = step.rows // 2
    logits = torch.randn(step.rows, step.model.config.vocab_size, device=step.device, dtype=DTYPE)
    given = {
        "uniform": torch.rand(images, device=step.device, dtype=torch.float64),
        "unconditional_rows": images + torch.arange(images, device=step.device),
        "scale": torch.full((images,), 2.0, device=step.device),
    }
    pieces = []
    for settings in ({}, {"top_k": 600}, {"top_p": 0.95}):
        for kind, sample in {"torch": plain.guided_sample, "kernel": sampling.guided_sample}.items():
            calls = [functools.partial(sample, logits, **given, **settings)] * 20
            pieces.append(_time(step, " ".join(["sampling", *settings]), kind, logits.nbytes, calls))
    return pieces


PIECES: dict[str, Callable[[Step], list[Piece]]] = {
    "sampling": time_sampling,
    "products": time_products,
    "modulation": time_modulation,
    "state": lambda step: time_mixing(step, "state", [STATE_POSITION]),
    "dual": lambda step: time_mixing(step, "dual", POSITIONS),
    "folded": lambda step: time_mixing(step, "folded", REPLAYED),
    "dual, int8": lambda step: time_mixing(step, "dual", POSITIONS, "int8"),
}


def _time(
    step: Step, kernel: str, launch: object, size: int, calls: Sequence[Callable[[], object]], **settings: int
) -> Piece:
    """Time one kernel in one layout; a layout that fails is a result as well, and the others go on."""
    piece: Piece = {"kernel": kernel, "rows": step.rows, **settings, "launch": launch, "bytes": size}
    try:
        piece["microseconds"] = microseconds(calls)
    except Exception as error:  # whatever a compiler or a driver may raise
        piece["failed"] = first_line(error)
    return piece


def _mixer_weights(step: Step) -> MixerWeights:
    """Random weights of a mixer, as a bfloat16 model holds them."""
    heads, config = step.heads, step.model.config
    channels = step.inner + 2 * config.state_size
    made = functools.partial(torch.randn, device=step.device)
    narrow = functools.partial(made, dtype=DTYPE)
    return MixerWeights(
        narrow(channels, config.conv_width),
        narrow(channels),
        torch.full((heads,), -9.0, device=step.device),  # so little decay that no replay forgets a token
        made(heads) - 4,
        made(heads),
        made(step.inner),
    )


def _mixer_memory(step: Step, form: Form, cache: Cache = "model") -> list[Tensor]:
    """Memory of one mixer, full of tokens that no head has forgotten."""
    config, rows, heads = step.model.config, step.rows, step.heads
    made = functools.partial(torch.zeros, device=step.device)
    window = made(rows, config.conv_width, step.inner + 2 * config.state_size, dtype=DTYPE)
    if form == "state":
        return [window, made(rows, heads, config.head_width, config.state_size)]
    capacity = first_fold(step.model, cache) if form == "folded" else config.num_tokens
    memory = [
        window,
        made(rows, capacity, config.state_size, dtype=DTYPE),
        made(rows, heads, capacity, config.head_width, dtype=torch.int8 if cache == "int8" else DTYPE),
        torch.ones(rows, heads, capacity, device=step.device),  # a token of weight 0 would not be read
    ]
    if form == "folded":
        memory += [made(rows, heads, config.head_width, config.state_size), made(rows, heads)]
    return memory


def _product_launches(step: Step, layout: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """Arguments of each launch layout of our matrix product, by label."""
    if not step.layouts:
        return {"default": {}}
    launches = itertools.starmap(layout, PRODUCTS)
    return {str(tuple(launch)): {"launch": launch} for launch in launches}


def _residual_product(step: Step) -> Callable[..., object]:
    """Our input projection with the norm before it in the same kernel."""
    from aimamba.ops.linear.triton import linear as products  # noqa: PLC0415 - imports Triton

    rows, width = step.rows, step.model.config.width
    made = functools.partial(torch.randn, device=step.device)
    residual, norm_weight, squares = made(rows, width), made(width), made(rows, step.heads).abs()
    shift, scale, gate = made(rows, 3, width, dtype=DTYPE).unbind(1)
    mixed = made(rows, width, dtype=DTYPE)

    def product(_: Tensor, weight: Tensor, **settings: Any) -> object:
        return products.residual_linear_step(
            residual, norm_weight, shift, scale, weight,
            mixed=mixed, gate=gate, squares=squares, inner=step.inner, **settings,
        )  # fmt: skip

    return product
