"""Kernels compiled for a GPU, without one, and what their binaries take of a multiprocessor."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

REGISTERS, SHARED, WARPS, PROGRAMS = 65536, 227 * 1024, 64, 32  # of a multiprocessor of Hopper
_RESERVED = 1024  # bytes of shared memory that the driver takes for a program


class Usage(NamedTuple):
    """What a compiled kernel takes.

    Attributes:
        registers: 32-bit registers of a thread.
        stack: Bytes of a thread's stack, in which the compiler keeps what the registers have no room for.
        warps: Warps that a multiprocessor has room for.
        instructions: Instructions of the binary.
        loops: Instructions of each of its loops, in their order.
    """

    registers: int
    stack: int
    warps: int
    instructions: int = 0
    loops: tuple[int, ...] = ()


class Binary(NamedTuple):
    """A kernel as Triton compiles it.

    Attributes:
        usage: What it takes.
        shared: Bytes of shared memory of a program.
        ir: Its text as Triton first sees it.
        ptx: Its text for the assembler.
    """

    usage: Usage
    shared: int
    ir: str
    ptx: str


def build(
    kernel: Any,
    types: Mapping[str, str],
    sizes: Mapping[str, Any],
    warps: int,
    stages: int,
    capability: int,
    divisible: frozenset[str] = frozenset(),
    registers: int | None = None,
) -> Binary:
    """Compile a kernel.

    Args:
        kernel: Function of Triton, not interpreted.
        types: Triton's types of the kernel's parameters, by name; others may be there too. Pointers are multiples of
            16, as PyTorch's are.
        sizes: The parameters that are constants.
        warps: Warps of a program.
        stages: See Triton's ``num_stages``.
        capability: The GPU, such as 90 for Hopper.
        divisible: Numbers among the parameters that are multiples of 16.
        registers: The most that a thread may have; None for no limit.
    """
    import triton  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    names = [parameter.name for parameter in kernel.params]
    signature = {name: "constexpr" if name in sizes else types[name] for name in names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in sizes.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name, kind in signature.items()
            if kind.startswith("*") or name in divisible
        },
    )
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tool = next(Path(triton.__file__).parent.rglob("cuobjdump"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", "--dump-sass", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    taken, stack = (int(found[1]) for found in (re.search(r"REG:(\d+)", said), re.search(r"STACK:(\d+)", said)))
    programs = programs_of(taken, built.metadata.shared, warps)
    usage = Usage(taken, stack, programs * warps, *count_instructions(said))
    return Binary(usage, built.metadata.shared, built.asm["ttir"], built.asm["ptx"])


def count_instructions(text: str) -> tuple[int, tuple[int, ...]]:
    """Return the instructions of a disassembled binary, and those of each of its loops.

    A loop is what lies between a branch and an earlier address to which it jumps. Of padding, the branch to itself that
    ends a binary, nothing is counted.
    """
    found = [(int(place, 16), what) for place, what in re.findall(r"/\*([0-9a-f]{4,5})\*/ +([^/]*?) *;", text)]
    places = [place for place, _ in found]
    jumps = [(place, re.search(r"\bBRA\b.* 0x([0-9a-f]+)", what)) for place, what in found]
    spans = [(int(jump[1], 16), place) for place, jump in jumps if jump is not None]
    loops = [(start, end) for start, end in spans if start < end]
    whole = next((start for start, end in spans if start == end), None)
    count = len(places) if whole is None else sum(place < whole for place in places)
    return count, tuple(sum(start <= place <= end for place in places) for start, end in sorted(loops))


def programs_of(registers: int, shared: int, warps: int) -> int:
    """Return how many programs run side by side on a multiprocessor.

    Args:
        registers: Registers of a thread; they are given out in eights.
        shared: Bytes of shared memory of a program.
        warps: Warps of a program.
    """
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    return min(PROGRAMS, WARPS // warps, by_registers, SHARED // (shared + _RESERVED) if shared else PROGRAMS)
