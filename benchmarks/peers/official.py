"""The official AiM from a checkout, with the sources of ``mamba_ssm`` from another.

Without Triton, ``mamba_ssm``'s kernels are replaced by its own reference functions: ``rms_norm_ref``, Mamba2's own
step for machines without kernels, and ``ssd_minimal_discrete`` (Listing 1 of the Mamba-2 paper) for whole sequences.
With Triton on CUDA its kernels run, and decoding replays its own CUDA graph.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.floors import Work, mamba_memories, ssd_mixing
from benchmarks.measurement import Measurement, UnavailableError
from benchmarks.ours import TORCH_DTYPES, aim_config
from benchmarks.subject import CFG_SCALE, Subject, linear_weights, numbers

_CHUNK = 64


class Official(Subject):
    """``MambaLMHeadModel`` with the guidance and sampling of its own decoding loop."""

    def __init__(self, measurement: Measurement, path: str, *, kernels: bool) -> None:
        sys.path.append(path)
        settings = import_module("models.stage2.config_mamba").MambaConfig
        network = import_module("models.stage2.mixer_seq_simple").MambaLMHeadModel
        self.decoding = import_module("models.stage2.generation")
        config = aim_config(measurement)
        if config.num_tokens != measurement.tokens or config.adaln not in ("block", "group"):
            raise UnavailableError(f"the official code has no model with the shape of {measurement.size}")
        self.tokens, self.device, self.kernels = config.num_tokens, torch.device(measurement.device), kernels
        shape = settings(
            d_model=config.width,
            n_layer=config.num_blocks,
            vocab_size=config.vocab_size,
            ssm_cfg={"layer": "Mamba2", "headdim": config.head_width, "d_state": config.state_size},
            num_classes=config.num_classes,
            num_tokens=config.num_tokens,
            adaln_group=config.adaln == "group",
            num_groups=config.adaln_groups if config.adaln == "group" else 1,
        )
        with self.device:
            model = network(shape)
        model.cfg_scale = CFG_SCALE
        self.model = model.to(self.device, TORCH_DTYPES[measurement.dtype])
        if find_spec("causal_conv1d") is None:
            for layer in model.backbone.layers:
                layer.mixer.use_mem_eff_path = False
        self.work = self._count(config.num_blocks)

    def _count(self, blocks: int) -> Work:
        model, mixer = self.model, self.model.backbone.layers[0].mixer
        used = [weight for layer in model.backbone.layers for weight in linear_weights(layer.mixer)]
        return Work(
            matrices=numbers([model.lm_head.weight, *used]),
            once=numbers(linear_weights(model)) - numbers([model.lm_head.weight, *used]),
            memories=mamba_memories(
                blocks=blocks,
                inner=mixer.d_inner,
                heads=mixer.nheads,
                state_size=mixer.d_state,
                conv_width=mixer.d_conv,
                narrow=model.lm_head.weight.element_size(),
            ),
            mixing=blocks * ssd_mixing(inner=mixer.d_inner, state_size=mixer.d_state, chunk=_CHUNK),
        )

    @torch.inference_mode()
    def generate(self, images: int, *, start: int = 0) -> Iterator[object]:
        """Generate token by token as its ``decode`` does; on CUDA the graph is captured before the first token."""
        self.model.eval()
        rows = 2 * images
        classes = torch.arange(images, device=self.device) % self.model.config.num_classes
        inputs = condition = torch.cat([classes, torch.full_like(classes, self.model.config.num_classes)])[:, None]
        run, memory = self._eager, self.decoding.InferenceParams(max_seqlen=self.tokens + 1, max_batch_size=rows)
        if self.kernels:
            graphs = self.decoding.update_graph_cache(self.model, None, rows, 1, self.tokens + 1, cond=condition)
            memory = graphs.inference_params
            memory.reset(self.tokens + 1, rows)
            run = self._replay(graphs)
        for t in (0, *range(start + 1, self.tokens)):
            memory.seqlen_offset = t
            logits = (self._eager if t == 0 else run)(inputs, t, memory, condition)
            inputs = self.decoding.sample(logits, top_k=0, top_p=1.0)[:, None]
            yield inputs

    def _eager(self, inputs: Tensor, t: int, memory: Any, condition: Tensor) -> Tensor:
        positions = None if t == 0 else torch.full_like(inputs, t)
        output = self.model(inputs, position_ids=positions, cond=condition, inference_params=memory, num_last_tokens=1)
        return output.logits[:, -1]

    @staticmethod
    def _replay(graphs: Any) -> Callable[[Tensor, int, Any, Tensor], Tensor]:
        def run(inputs: Tensor, t: int, memory: Any, condition: Tensor) -> Tensor:
            return graphs.run(inputs, torch.full_like(inputs, t), t, cond=condition)[:, -1]

        return run

    def loss(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of its training logits."""
        self.model.train()
        logits = self.model(codes[:, :-1], cond=labels[:, None]).logits
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())


def build(measurement: Measurement, paths: dict[str, str]) -> Official:
    """Build the peer from its checkout; ``mamba`` in ``paths`` names the sources of ``mamba_ssm``."""
    if "mamba" in paths:
        _package_without_its_init("mamba_ssm", Path(paths["mamba"]) / "mamba_ssm")
    elif find_spec("mamba_ssm") is None:
        raise UnavailableError("the official AiM needs mamba_ssm; name its sources with --peer mamba=PATH")
    _old_names_of_transformers()
    if measurement.device.startswith("cuda") and find_spec("triton") is not None:
        return Official(measurement, paths["official"], kernels=True)
    with _stub_triton():
        _replace_kernels()
        return Official(measurement, paths["official"], kernels=False)


def _package_without_its_init(name: str, folder: Path) -> None:
    """Make submodules of a package importable without running its ``__init__``."""
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


@contextmanager
def _stub_triton() -> Iterator[None]:
    """Install a ``triton`` whose decorators do nothing, so that modules with kernels can be imported."""

    def keep(function: Any = None, **_: Any) -> Any:
        return function if callable(function) else lambda decorated: decorated

    def remember(configs: list[Any], **_: Any) -> Any:
        return lambda decorated: setattr(decorated, "configs", configs) or decorated

    def config(sizes: dict[str, int], **settings: Any) -> SimpleNamespace:
        return SimpleNamespace(kwargs=sizes, **{"num_warps": 1, "num_stages": 1} | settings)

    triton, language = ModuleType("triton"), ModuleType("triton.language")
    contents = {
        "__version__": "3.0.0",
        "jit": keep,
        "autotune": remember,
        "heuristics": lambda *_, **__: keep,
        "Config": config,
        "language": language,
    }
    vars(triton).update(contents)
    language.constexpr = object  # type: ignore[attr-defined]
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "triton"}
    sys.modules.update({"triton": triton, "triton.language": language})
    yield
    for name in ("triton", "triton.language"):
        del sys.modules[name]
    sys.modules.update(before)


def _old_names_of_transformers() -> None:
    """Restore names of ``transformers.generation`` that newer versions have renamed."""
    generation = import_module("transformers.generation")
    for name in ("GreedySearchDecoderOnlyOutput", "SampleDecoderOnlyOutput"):
        if not hasattr(generation, name):
            setattr(generation, name, generation.GenerateDecoderOnlyOutput)


def _replace_kernels() -> None:
    """Replace kernels by reference functions."""
    norms = import_module("mamba_ssm.ops.triton.layer_norm")
    gated = import_module("mamba_ssm.ops.triton.layernorm_gated")

    def norm(x: Tensor, weight: Tensor, bias: Tensor | None, **settings: Any) -> Any:
        kept = {name: settings[name] for name in ("residual", "eps", "prenorm") if name in settings}
        return norms.rms_norm_ref(x, weight, bias, upcast=True, **kept)

    norms.rms_norm_fn = norms.layer_norm_fn = norm
    gated.rmsnorm_fn = gated.rms_norm_ref
    scans = import_module("mamba_ssm.ops.triton.ssd_combined")
    minimal = import_module("mamba_ssm.modules.ssd_minimal")
    mixers = import_module("mamba_ssm.modules.mamba2")
    mixers.selective_state_update = None
    scans.mamba_chunk_scan_combined = mixers.mamba_chunk_scan_combined = _scan(minimal.ssd_minimal_discrete)


def _scan(minimal: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """Wrap Listing 1 of the Mamba-2 paper in the signature of ``mamba_chunk_scan_combined``, for one group."""

    def scan(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor, dt_bias: Tensor, **settings: Any
    ) -> Any:
        step = F.softplus(dt.to(A.dtype) + dt_bias)
        heads, length = x.shape[2], x.shape[1]
        wide, padding = x.to(A.dtype), -length % min(_CHUNK, length)
        inputs = [wide * step[..., None], step * A, *(part.to(A.dtype).expand(-1, -1, heads, -1) for part in (B, C))]
        padded = [nn.functional.pad(part, (0, 0) * (part.ndim - 2) + (0, padding)) for part in inputs]
        y, state = minimal(*padded, min(_CHUNK, length))
        y = (y[:, :length] + D[:, None] * wide).to(x.dtype)
        return (y, state) if settings.get("return_final_states") else y

    return scan
