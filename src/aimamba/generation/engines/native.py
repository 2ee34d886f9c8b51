"""Decoding with the C++ kernel: weights are packed once, and one call computes all blocks of a step.

The kernel uses the dual form of the recurrence (``aimamba.ops.ssd``). It keeps x and B of past tokens, and for each
head how far each has decayed, and folds them into a state only when reading them would cost more than reading the
state. It computes in float32; in bfloat16 mode, weights (int8 as an option), inputs of matrix products, and x and B of
past tokens are stored in bfloat16. The results of a row are bit-identical for every batch size and number of threads.

Shape letters: R rows, D width, E inner width, H heads, P head width, N state size, K cached tokens.
"""

import ctypes
import threading
import weakref
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.errors import CheckpointError, ConfigError
from aimamba.inference import undisturbed
from aimamba.models import AiM, AiMConfig, AiMState
from aimamba.models.mamba2 import Mamba2
from aimamba.models.state import MixerState
from aimamba.ops.native.build import load_library
from aimamba.ops.sampling.logits import Setting

Weights = Literal["float32", "bfloat16", "int8"]

_SOURCES = (
    "mixer/native/step.cpp",
    "mixer/native/step_sums.h",
    "sampling/native/sample.h",
    "native/panels.h",
    "native/matrix.h",
    "native/threads.h",
    "native/simd.h",
)
_KINDS: dict[Weights, int] = {"float32": 0, "bfloat16": 1, "int8": 2}
_MEMORIES = ("window", "inputs", "B", "weights", "folded", "carry")
_OVERWRITTEN = frozenset(_MEMORIES) - {"window"}
_LANES = 16  # float32 numbers in the widest vector register
_WIDEST_HEAD = 256
_FOLD_EVERY = 32  # tokens, after the first fold


def load_kernel(flags: tuple[str, ...] | None = None) -> ctypes.CDLL | None:
    """Return the compiled kernel, or None without a compiler; see ``aimamba.ops.native.build.load_library``."""
    library = load_library(_SOURCES, flags)
    if library is not None:  # ctypes needs the types of arguments and results
        pointer, number = ctypes.c_void_p, ctypes.c_int
        library.aim_create.restype = pointer
        library.aim_create.argtypes = [pointer, number, number]
        library.aim_destroy.argtypes = [pointer]
        library.aim_add_layer.argtypes = [pointer] * 10
        library.aim_set_head.argtypes = [pointer] * 4
        library.aim_step.argtypes = [pointer, number, *([pointer] * 6)]
        library.aim_sample.argtypes = [pointer, number, *([pointer] * 9)]
    return library


def unsupported(model: AiM) -> str | None:
    """Return the reason why the kernel cannot decode the model on this machine, or None. May compile the kernel."""
    config, weight = model.config, model.word_embedding.weight
    if weight.device.type != "cpu":
        return f"it runs on the CPU, and the model is on {weight.device.type}"
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"it takes float32 or bfloat16, and the model is in {str(weight.dtype).removeprefix('torch.')}"
    if others := sorted(set(config.block_mixers) - {"mamba2"}):
        return f"it decodes the mixer mamba2, not {' and '.join(others)}"
    if any(size % _LANES for size in (config.width, config.head_width, config.state_size)):
        return f"width, head_width and state_size must be multiples of {_LANES}"
    if config.head_width > _WIDEST_HEAD:
        return f"head_width must be at most {_WIDEST_HEAD}"
    return None if load_kernel() is not None else "no C++ compiler built it (pip install ziglang installs one)"


class NativeEngine:
    """Decodes as ``AiM.init_state`` and ``AiM.step`` do, with a copy of the model's weights."""

    def __init__(
        self,
        model: AiM,
        *,
        weights: Weights | None = None,
        threads: int | None = None,
        flags: tuple[str, ...] | None = None,
    ) -> None:
        """Pack the weights.

        Args:
            model: The generator, on the CPU in float32 or bfloat16.
            weights: Format of the matrices; by default the model's dtype. ``int8`` has one scale for each output.
            threads: Number of threads; by default as many as torch uses.
            flags: Compiler flags for another machine, see ``load_kernel``.

        Raises:
            ConfigError: The kernel cannot decode this model, see ``unsupported``.
            CheckpointError: Weights contain NaN or infinity.
        """
        if reason := unsupported(model):
            raise ConfigError(f"the native engine cannot decode this model: {reason}; choose the engine 'plain'")
        kernel = load_kernel(flags)
        if kernel is None:
            raise ConfigError(f"the native engine does not compile for {flags}")
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):  # 8-bit integers would hide it
            raise CheckpointError("the generator's weights contain NaN or infinity: they are damaged; give others")
        self.model = model
        chosen: Weights = weights or ("float32" if model.word_embedding.weight.dtype == torch.float32 else "bfloat16")
        self._cache_dtype = torch.float32 if chosen == "float32" else torch.bfloat16
        self._kernel, config = kernel, model.config
        self._lock = threading.Lock()  # one call at a time: the kernel has one working memory
        self._first = 2 * config.state_size
        self._slots = min(config.steps, max(self._first, _FOLD_EVERY))
        mixers = [block.mixer for block in model.blocks]
        inner, heads = config.inner, config.inner // config.head_width
        sizes = (len(mixers), config.width, inner, heads, config.state_size, config.conv_width, config.vocab_size)
        shape = (ctypes.c_int * 10)(*sizes, self._first, _FOLD_EVERY, self._slots)
        self._handle = kernel.aim_create(shape, _KINDS[chosen], threads or torch.get_num_threads())
        weakref.finalize(self, kernel.aim_destroy, self._handle)
        for block, mixer in zip(model.blocks, mixers, strict=True):
            assert isinstance(mixer, Mamba2)
            A = -mixer.A_log.exp()
            small = (mixer.conv_weight.t(), mixer.conv_bias, mixer.dt_bias, A, mixer.D, mixer.norm.weight)
            self._pass(kernel.aim_add_layer, mixer.in_proj.weight, mixer.out_proj.weight, block.norm.weight, *small)
        self._pass(kernel.aim_set_head, model.word_embedding.weight, model.norm.weight, model.final_norm.weight)

    def _pass(self, function: "ctypes._NamedFuncPointer", *tensors: Tensor) -> None:
        """Call a function of the kernel with tensors in float32, which it copies."""
        wide = [tensor.detach().float().contiguous() for tensor in tensors]
        function(self._handle, *(tensor.data_ptr() for tensor in wide))

    @undisturbed()
    def init_state(self, batch: int, *, position_shift: int | None = None) -> AiMState:
        """Return the state of ``batch`` rows at position 0; see ``AiM.init_state``."""
        config = self.model.config
        shift = config.decode_position_shift if position_shift is None else position_shift
        return AiMState(
            position=torch.zeros(batch, dtype=torch.long),
            position_shift=torch.full((batch,), shift),
            opening=torch.zeros(batch, config.prefix_tokens + 1, config.width, dtype=torch.float32),
            modulation=torch.zeros(batch, config.num_blocks, 3, config.width, dtype=torch.float32),
            final_modulation=torch.zeros(batch, 2, config.width, dtype=torch.float32),
            mixers=[self._init_mixer(config, batch) for _ in range(config.num_blocks)],
            overwritten=_OVERWRITTEN,
        )

    def _init_mixer(self, config: AiMConfig, batch: int) -> MixerState:
        """Return the memory of one block."""
        inner = config.inner
        heads = inner // config.head_width
        long = config.steps > self._first
        state = (batch, heads, config.state_size, config.head_width) if long else (batch, 0)
        return {
            "window": torch.zeros(batch, config.conv_width - 1, inner + 2 * config.state_size, dtype=torch.float32),
            "inputs": torch.empty(batch, heads, self._slots, config.head_width, dtype=self._cache_dtype),
            "B": torch.empty(batch, self._slots, config.state_size, dtype=self._cache_dtype),
            "weights": torch.empty(batch, heads, self._slots, dtype=torch.float32),
            "folded": torch.empty(state, dtype=torch.float32),
            "carry": torch.empty(batch, heads, dtype=torch.float32),
        }

    def step(self, inputs: Int[Tensor, " r"] | Float[Tensor, "r p1 d"], state: AiMState) -> Float[Tensor, "r v"]:
        """Feed one token of each row and return the logits of its next code, in float32; see ``AiM.step``."""
        with torch.no_grad(), undisturbed():
            residual = self.model.enter(inputs, state).float().contiguous()
        assert int(state.position.max()) < self.model.config.steps, "a row has taken all tokens of an image"
        logits = torch.empty(len(inputs), self.model.config.vocab_size, dtype=torch.float32)
        memories = (ctypes.c_void_p * (len(state.mixers) * len(_MEMORIES)))(*self._addresses(state.mixers))
        with self._lock:
            self._kernel.aim_step(
                self._handle,
                len(inputs),
                residual.data_ptr(),
                state.modulation.data_ptr(),
                state.final_modulation.data_ptr(),
                memories,
                state.position.data_ptr(),
                logits.data_ptr(),
            )
        state.position = state.position + 1
        return logits

    def guided_sample(
        self,
        logits: Float[Tensor, "r v"],
        uniform: Float[Tensor, " b"],
        *,
        unconditional_rows: Int[Tensor, " b"] | None = None,
        scale: Float[Tensor, " b"] | None = None,
        temperature: Setting = 1.0,
        top_k: Setting = 0,
        top_p: Setting = 1.0,
        min_p: Setting = 0.0,
    ) -> Int[Tensor, " b"]:
        """Sample as ``aimamba.ops.sampling.logits.guided_sample`` does, without starting PyTorch's threads.

        After a parallel loop, these threads spin for longer than a step takes, on the cores that the kernel needs.
        """
        count = len(uniform)
        unconditional_rows = torch.arange(count) if unconditional_rows is None else unconditional_rows
        scale = torch.ones(count, dtype=torch.float32) if scale is None else scale
        codes = torch.empty(count, dtype=torch.long)
        arguments = (
            logits.contiguous(),
            unconditional_rows.contiguous(),
            scale.float().contiguous(),
            _of_rows(temperature, count),
            _of_rows(top_k, count, torch.long),
            _of_rows(top_p, count),
            _of_rows(min_p, count),
            uniform.double().contiguous(),
            codes,
        )
        with self._lock:
            self._kernel.aim_sample(self._handle, count, *(tensor.data_ptr() for tensor in arguments))
        return codes

    @staticmethod
    def _addresses(mixers: Iterable[MixerState]) -> Iterable[int | None]:
        for memory in mixers:
            for name in _MEMORIES:
                yield memory[name].data_ptr() if memory[name].numel() else None


def _of_rows(setting: Setting, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a setting as one number a row, (B,)."""
    return torch.as_tensor(setting, dtype=dtype).expand(count).contiguous()
