"""Fixtures that several parts of the suite share.

Nothing of aimamba is imported at the top: jaxtyping's import hook is not in place yet.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("aimamba", deadline=None, derandomize=True, max_examples=40, database=None)
hypothesis.settings.load_profile("aimamba")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported: its kernels then run on the CPU
torch.set_num_threads(1)  # the tensors are tiny: threads that wait for each other cost more than they bring


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device: make test-gpu"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of what the official code computes (see its README)."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def pixels() -> Callable[..., np.ndarray]:
    """Make random images of 8 pixels, (N, 8, 8, 3)."""
    return lambda n, seed=0: np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory) -> Callable[[], Path]:
    """Make an empty cache folder that shares its compiled kernels with all others: each is compiled once."""
    from aimamba.files import cache_folder

    kernels = cache_folder() / "native"  # named by a hash of their sources
    kernels.mkdir(mode=0o700, parents=True, exist_ok=True)

    def make() -> Path:
        folder = tmp_path_factory.mktemp("cache")
        (folder / "native").symlink_to(kernels, target_is_directory=True)
        return folder

    return make


@pytest.fixture(scope="session")
def make_aim() -> Callable[..., Any]:
    """Build a small generator in which every part has an effect: random adaLN, large embeddings, peaked logits."""
    from aimamba.models import AiM, AiMConfig

    small = {
        "width": 16,
        "num_blocks": 2,
        "vocab_size": 24,
        "num_tokens": 9,
        "num_classes": 5,
        "state_size": 4,
        "head_width": 8,
        "chunk_size": 4,
        "adaln_groups": 2,
    }

    @torch.no_grad()
    def make(*, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> AiM:
        model = AiM(AiMConfig(**(small | settings)))
        generator = torch.Generator().manual_seed(seed)
        model.init_weights(generator)
        for name, parameter in model.named_parameters():
            if "adaln" in name:
                parameter.normal_(std=0.2, generator=generator)
            elif "embedding" in name or "condition" in name:
                parameter.normal_(std=0.5, generator=generator)
        return model.cast(dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_vq() -> Callable[..., Any]:
    """Build a small tokenizer whose codebook is the vocabulary of ``make_aim``."""
    from aimamba.models import VQConfig, VQModel

    small = {
        "channels": 8,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "z_channels": 8,
        "codebook_size": 24,
        "codebook_dim": 4,
        "norm_groups": 4,
    }

    def make(*, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> VQModel:
        model = VQModel(VQConfig(**(small | settings)))
        model.init_weights(torch.Generator().manual_seed(seed))
        return model.cast(dtype).eval()

    return make
