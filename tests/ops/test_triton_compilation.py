"""Triton compiles the kernels for a GPU, without one: the interpreter accepts more than the compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[2]

# Compiled in a separate process, because here the kernels are interpreted.
PROGRAM = """
import re
import sys
import torch
from aimamba.ops.conv.triton import causal
from aimamba.ops.embedding.triton import step as embedding
from aimamba.ops.linear.triton import linear as products
from aimamba.ops.loss.triton import cross_entropy
from aimamba.ops.mixer.triton import folded
from aimamba.ops.mixer.triton import step as mixer
from aimamba.ops.norm.triton import gated, modulated
from aimamba.ops.norm.triton import group as groups
from aimamba.ops.norm.triton import residual as norms
from aimamba.ops.sampling.triton import logits as sampling
from aimamba.ops.ssd.triton import backward as scan_backward
from aimamba.ops.ssd.triton import chunked as scan
from aimamba.ops.ssd.triton import forward as scan_forward
from aimamba.ops.ssd.triton import quadratic, quadratic_backward
from benchmarks import binaries

CAPABILITY = int(sys.argv[1])

def build(kernel, narrow, wide, sizes, numbers, launch, dtype=""):
    divisible = frozenset(name for name, kind in numbers.items() if kind == "i32:16" and name not in sizes)
    types = {"positions": "*i64"} | dict.fromkeys(narrow.split(), "*bf16") | dict.fromkeys(wide.split(), "*fp32")
    types |= numbers | dict.fromkeys(divisible, "i32")
    layout = launch.warps, getattr(launch, "stages", 1)
    limit = getattr(launch, "registers", None)
    built = binaries.build(kernel, types, sizes, *layout, CAPABILITY, divisible, limit)
    assert built.shared <= (227 if CAPABILITY == 90 else 163) * 1024
    overlapping = "griddepcontrol.wait" in built.ptx
    counts = re.findall("(%[^ ]+) = tt.get_num_programs", built.ir)
    products = re.findall("arith.muli (.*) : i32", built.ir)
    short = any(count in re.split("[, ]+", operands) for count in counts for operands in products)
    usage = built.usage
    print(kernel.__name__ + dtype, usage.stack, usage.registers, 32 * launch.warps, overlapping, short)

narrow = "projected conv_weight conv_bias window B_cache x_cache gated"
wide = "dt_bias A_log D norm_weight ssm weight_cache squares"
xl = {"H": 48, "P": 64, "N": 128, "TAPS": 4}
xl["OVERLAP"] = CAPABILITY == 90
xl["channel_stride"] = 1
build(mixer._state_kernel, narrow, wide, xl | {"GROUP": mixer.STATE.heads}, {"tap_stride": "i32:16"}, mixer.STATE)
for int8 in (False, True):
    numbers = {"capacity": "i32:16", "tap_stride": "i32:16"} | ({"x_cache": "*i8"} if int8 else {})
    for launch in mixer.DUAL.values():
        sizes = xl | mixer.sizes_of(launch, 64, torch.int8 if int8 else torch.bfloat16)
        build(mixer._dual_kernel, narrow, wide, sizes, numbers, launch)
    numbers |= {"every": "i32"} | dict.fromkeys(("folded", "carry"), "*fp32")
    sizes = xl | folded.folded_sizes(folded.FOLDED, 64, torch.int8 if int8 else torch.bfloat16)
    build(folded._folded_kernel, narrow, wide, sizes, numbers, folded.FOLDED)
counts = "shift_stride scale_stride gate_stride parts inner outputs span".split()
numbers = dict.fromkeys(counts, "i32") | {"eps": "fp32"}
narrow, wide = "shift scale mixed gate hidden weight x y", "residual norm_weight final_weight squares new_residual"
sizes = {"D": 1536, "ADD": True, "DIVIDE": True, "PARTS": 64}
launch = norms.DEFAULT
sizes["OVERLAP"] = xl["OVERLAP"]
build(norms._norm_step_kernel, narrow, wide, sizes | {"BLOCK": 2048, "FINAL": True, "SPLITS": 4}, numbers, launch)

def tiles(outputs, inputs, kept=0):
    weight = torch.empty(outputs, inputs, device="meta", dtype=torch.bfloat16)
    division = products.divide(weight, products.DEFAULT, kept=kept)
    return {name.upper(): getattr(division, name) for name in ("block", "tiles", "shares", "parts", "lanes")}

embedded = dict.fromkeys("inputs position position_shift".split(), "*i64")
given = "opening words places", "residual", {"D": 1536, "PREFIX": 16, "BLOCK": 2048, "PLACED": True}
build(embedding._embed_step_kernel, *given, embedded, norms.Launch(4))
sizes |= {"ROWS": 2, "EVEN": 2, "GROUPS": 64} | tiles(6448, 1536, kept=2)
build(products._residual_kernel, narrow, wide, sizes, numbers, products.DEFAULT)
sizes = {"D": 3072, "ROWS": 2, "OVERLAP": xl["OVERLAP"]} | tiles(1536, 3072)
build(products._linear_kernel, narrow, wide, sizes, numbers, products.DEFAULT)
sizes = {"V": 16384, "BLOCK": 16384, "SPAN": 128, "GUIDED": True, "TEMPERATURES": False, "KS": False, "TOP_K": True}
sizes["MIN_PS"] = False
numbers = {"temperature": "fp32", "k": "i32", "uniforms": "*fp64", "unconditional_rows": "*i64", "tokens": "*i64"}
numbers["min_p"] = "fp32"
build(sampling._guided_sample_kernel, "logits", "scales temperatures ks min_ps", sizes, numbers, norms.Launch(16))
numbers = dict.fromkeys("L chunks".split(), "i32")
numbers |= dict.fromkeys("x_row x_token x_head B_row B_token C_row C_token".split(), "i32:16")
narrow, wide = "x B C y carried dy after dx", "dt A first last dlast dfirst ddt dA dB dC"
for dtype in scan.DTYPES:
    numbers |= dict.fromkeys(narrow.split(), "*fp32" if dtype == torch.float32 else "*bf16")
    launch, said = scan_forward.LAUNCHES[dtype], f":{dtype}".replace("torch.", "")
    chunk = scan.chunk_length(torch.empty(1, 256, 1, 1, dtype=dtype), 64)
    sizes = {"H": 48, "P": 64, "N": 128, "Q": chunk, "WIDE_P": 64, "WIDE_N": 128, "FIRST": False}
    build(scan_forward._forward_kernel, narrow, wide, sizes | {"KEEP": True}, numbers, launch, said)
    build(scan_backward._states_kernel, narrow, wide, sizes | {"LAST": False}, numbers, launch, said)
    launch = scan_backward.CHUNK
    sizes |= {"LAST": False, "GROUP": launch.heads}
    build(scan_backward._chunk_kernel, narrow, wide, sizes, numbers, launch, said)

# Training of AiM-XL: 256 tokens.
inner, heads, width, states, features = 3072, 48, 64, 128, 6448
narrow = "projected active tiles y dy dactive dprojected out dout"
wide = "weight bias dt_bias A_log dt total since left skip apart within same dtiles later sums inverses"
numbers = dict.fromkeys("L T M width groups".split(), "i32") | {"eps": "fp32"}
launches = quadratic.LAUNCHES[torch.bfloat16]
Q = launches.tokens
pairs = {"C": inner + 2 * states, "H": heads, "P": width, "WIDE_P": width, "Q": Q}
shared = {"C": inner + 2 * states, "E": inner, "N": states, "WIDE_N": states, "Q": Q}
steps = {"Z": features, "START": features - heads, "H": heads, "Q": Q}
plain = scan_forward.Launch(4, 3)  # what kernels without a choice are launched with
build(quadratic._output_kernel, narrow, wide, pairs, numbers, launches.output)
build(quadratic_backward._inputs_kernel, narrow, wide, pairs, numbers, launches.inputs)
pairs |= {"GROUP": heads // launches.pair_groups}
build(quadratic_backward._within_kernel, narrow, wide, pairs, numbers, launches.within)
build(quadratic_backward._apart_kernel, narrow, wide, pairs | {"WIDE_T": 256 // Q}, numbers, launches.apart)
build(quadratic._similarity_kernel, narrow, wide, shared, numbers, plain)
build(quadratic_backward._projections_kernel, narrow, wide, shared, numbers, plain)
build(quadratic._steps_kernel, narrow, wide, steps | {"HEADS": quadratic.HEADS}, numbers, plain)
build(quadratic_backward._steps_backward_kernel, narrow, wide, steps | {"WIDE_T": 256 // Q}, numbers, norms.Launch(1))
for suffix, launch in (("", causal.FORWARD), ("_backward", causal.BACKWARD)):
    kernel = getattr(causal, f"_convolution{suffix}_kernel")
    tile = {"TAPS": 4, "TOKENS": launch.tokens, "CHANNELS": launch.channels}
    sizes = {"Z": features, "E": inner, "C": inner + 2 * states}
    build(kernel, narrow, wide, sizes | tile, numbers, launch)

def norm(kernel, sizes, launch):
    sizes = sizes | {"TOKENS": launch.tokens, "STAGES": launch.stages}
    launch = scan_forward.Launch(launch.warps(sizes["WIDE"]), 1, launch.registers)
    build(kernel, narrow, wide, sizes, numbers, launch)

sizes = {"Z": features, "E": inner, "WIDE": 4096}
for suffix, launch in (("", gated.FORWARD), ("_backward", gated.BACKWARD)):
    norm(getattr(gated, f"_gated_norm{suffix}_kernel"), sizes, launch)
narrow = "mixed gate scale shift hidden dhidden dmixed dshift dscale dgate logits"
wide = "residual new_residual weight before inverses firsts dnew dresidual sums dweights dbefores losses factor"
numbers = dict.fromkeys("L gate_stride scale_stride shift_stride parts".split(), "i32")
numbers |= {"eps": "fp32", "factor": "fp32", "targets": "*i64"}
for before in (False, True):  # between blocks, and after the last one
    for suffix, launch, more in (("", modulated.FORWARD, {}), ("_backward", modulated.BACKWARD, {"NEW": True})):
        sizes = {"D": 1536, "WIDE": 2048, "ADD": True, "BEFORE": before}
        norm(getattr(modulated, f"_modulated_norm{suffix}_kernel"), sizes | more, launch)
    sizes = {"D": 1536, "WIDE_G": 256 // launch.tokens, "COLUMNS": modulated._COLUMNS, "ADD": True, "BEFORE": before}
    build(modulated._modulation_sums_kernel, narrow, wide, sizes, numbers, plain)
sizes = {"V": 16384, "WIDE": 16384, "LEARNING": True}
build(cross_entropy._cross_entropy_kernel, narrow, wide, sizes, numbers, norms.Launch(16))

# The tokenizer's decoder: its narrowest level.
sizes = groups.sizes_of(128, 32)
numbers = {"N": "i32:16", "span": "i32:16", "eps": "fp32"}
build(groups._moments_kernel, "x", "moments", sizes, numbers, groups.DEFAULT)
sizes |= {"PARTS": groups.DEFAULT.parts, "SILU": True}
build(groups._normalise_kernel, "x weight bias out", "moments", sizes, numbers, groups.DEFAULT)
one = {"N": 1, "span": 1}  # Triton makes a number that is 1 a constant
build(groups._moments_kernel, "x", "moments", groups.sizes_of(128, 32) | one, numbers, groups.DEFAULT)
build(groups._normalise_kernel, "x weight bias out", "moments", sizes | one, numbers, groups.DEFAULT)
"""

# Bytes a thread of some kernels keeps in memory, at most, on compute capability 8.0 and 9.0: by Triton 3.6.0 and 3.7.1.
SPILLED = {
    "_inputs_kernel": (96, 0),  # its registers are limited so that four programs run on a multiprocessor of Hopper
    # The chunked scan takes a program of 255 registers and more in every layout (4 to 16 warps, chunks of 32 and 64
    # tokens, 16 to 64 channels, its backward pass as one kernel or two). Shorter chunks spill less, but twice the
    # states would be kept for the backward pass. Models take it beyond 1,024 tokens, and never in float32 unasked.
    "_forward_kernel:float32": (448, 488),
    "_chunk_kernel:float32": (2696, 2752),
    "_forward_kernel:bfloat16": (464, 64),
    "_chunk_kernel:bfloat16": (3824, 1056),
}


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile(tmp_path, capability):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(capability)]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    built = [line.split() for line in done.stdout.splitlines()]
    names = ["_state_kernel", *[*["_dual_kernel"] * 3, "_folded_kernel"] * 2, "_norm_step_kernel", "_embed_step_kernel"]
    names += ["_residual_kernel", "_linear_kernel", "_guided_sample_kernel"]
    scan = "_forward_kernel", "_states_kernel", "_chunk_kernel"
    names += [f"{name}:{dtype}" for dtype in ("float32", "bfloat16") for name in scan]
    names += ["_output_kernel", "_inputs_kernel", "_within_kernel", "_apart_kernel"]
    names += ["_similarity_kernel", "_projections_kernel", "_steps_kernel", "_steps_backward_kernel"]
    names += [f"_{name}_{suffix}" for name in ("convolution", "gated_norm") for suffix in ("kernel", "backward_kernel")]
    names += ["_modulated_norm_kernel", "_modulated_norm_backward_kernel", "_modulation_sums_kernel"] * 2
    names += ["_cross_entropy_kernel"]
    names += ["_moments_kernel", "_normalise_kernel"] * 2
    assert [name for name, *_ in built] == names
    most = {name: known[capability == 90] for name, known in SPILLED.items()}
    spilled = {name: int(stack) for name, stack, *_ in built if int(stack) > most.get(name, 0)}
    assert not spilled, "bytes a thread that do not fit into its registers"
    registers = {name: int(registers) * int(threads) for name, _, registers, threads, *_ in built}
    assert 2 * registers["_cross_entropy_kernel"] <= 65536, "one program reads while the other computes"
    of_training = built[names.index("_guided_sample_kernel") + 1 :]
    assert {name for name, *_, short in of_training if short == "True"} == set(), "a large batch has 2^31 numbers"
    of_a_step = names[: names.index("_guided_sample_kernel")]
    overlapping = [name for name in of_a_step if name != "_embed_step_kernel"] if capability >= 90 else []
    assert [name for name, *_, waits, _ in built if waits == "True"] == overlapping, "steps overlap"
