"""The number of parameters is known from the config alone."""

import itertools

import pytest
import torch

from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiM, AiMConfig, VQConfig, VQModel
from aimamba.models.bounds import count_generator, count_tokenizer

GENERATORS = [
    AiMConfig(
        width=32, num_blocks=4, vocab_size=50, num_tokens=9, head_width=8, mixer=mixer, adaln=adaln, positions=positions
    )
    for mixer, adaln, positions in itertools.product(
        ("mamba2", "mamba3", "gated-deltanet", "attention"), ("none", "block", "single", "group"), ("learned", "none")
    )
]
GENERATORS += [
    AiMConfig(width=32, num_blocks=5, vocab_size=50, num_tokens=9, head_width=8, expand=1.5, **hybrid)
    for hybrid in (
        {"hybrid_every": 2},
        {"hybrid_every": 5, "hybrid_mixer": "gated-deltanet"},
        {"mixer": "gated-deltanet", "hybrid_every": 3},
    )
]
TOKENIZERS = [
    VQConfig(
        channels=8,
        channel_mult=multiples,
        num_res_blocks=blocks,
        patch_size=patch,
        z_channels=12,
        codebook_size=20,
        codebook_dim=3,
        norm_groups=4,
        attention=attention,
    )
    for multiples, blocks, patch, attention in itertools.product(
        ((1,), (1, 2), (2, 1, 3)), (1, 3), (1, 2), (True, False)
    )
]


@pytest.mark.parametrize("config", [*AIM_PRESETS.values(), *GENERATORS])
def test_parameters_of_a_generator(config):
    with torch.device("meta"):
        assert count_generator(config) == AiM(config).num_parameters()


@pytest.mark.parametrize("config", [*VQ_PRESETS.values(), *TOKENIZERS])
def test_parameters_of_a_tokenizer(config):
    with torch.device("meta"):
        assert count_tokenizer(config) == VQModel(config).num_parameters()
