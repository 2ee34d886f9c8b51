"""Everything that the official code computed on small models with random weights (tests/golden/README.md)."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.checkpoints.official import aim_from_official
from aimamba.generation import SamplingConfig, generate
from aimamba.models import AiM, VQModel
from aimamba.ops.sampling.logits import guide

FOLDERS = ("adaln", "group2")
DOUBLE, SINGLE = torch.float64, torch.float32
BOUND = {DOUBLE: 1e-6, SINGLE: 1e-4}
STEP_BOUND = {DOUBLE: 1e-6, SINGLE: 1e-3}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, golden):
    return golden / request.param


@pytest.fixture(scope="module")
def io(folder) -> dict[str, Tensor]:
    return load_file(folder / "io.safetensors")


@pytest.fixture(scope="module", params=[DOUBLE, SINGLE], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def model(folder, dtype) -> AiM:
    return AiM.from_pretrained(folder, dtype=dtype)


@pytest.fixture(scope="module")
def tensors(golden) -> dict[str, Tensor]:
    """What the tokenizer computed; it exists beside one of the generators alone."""
    return load_file(golden / "adaln" / "io.safetensors")


@pytest.fixture(scope="module")
def tokenizer(golden, dtype) -> VQModel:
    return VQModel.from_pretrained(golden / "adaln", dtype=dtype)


def close(ours: Tensor, expected: Tensor, bound: float) -> None:
    assert_close(ours, expected.to(ours.dtype), rtol=0, atol=bound)


def expect(io: dict[str, Tensor], key: str, dtype: torch.dtype) -> Tensor:
    return io[f"{key}_f64"] if dtype == DOUBLE else io[key]


@torch.no_grad()
def step_logits(model: AiM, io: dict[str, Tensor], scale: float | None, position_shift: int | None = None) -> Tensor:
    """Logits of decoding ``tokens`` one by one; with a scale, guided against the "no class" label."""
    tokens, labels = io["tokens"], io["labels"]
    inputs = labels
    if scale is not None:
        tokens = torch.cat([tokens, tokens])
        inputs = torch.cat([labels, torch.full_like(labels, model.config.num_classes)])
    state = model.init_state(len(inputs), position_shift=position_shift)
    outputs = []
    for t in range(tokens.shape[1]):
        logits = model.step(inputs, state)
        outputs.append(logits if scale is None else guide(*logits.chunk(2), scale))
        inputs = tokens[:, t]
    return torch.stack(outputs, dim=1)


@torch.no_grad()
def test_logits(model, io, dtype):
    close(model(io["tokens"][:, :-1], io["labels"]), expect(io, "tf_logits", dtype), BOUND[dtype])


@torch.no_grad()
def test_logits_at_shifted_positions(model, io, dtype):
    logits = model(io["tokens"][:, :-1], io["labels"], position_shift=1)
    close(logits, expect(io, "tf_logits_pos1", dtype), BOUND[dtype])
    assert (logits - model(io["tokens"][:, :-1], io["labels"])).abs().max() > 1, "the shift must matter"


@pytest.mark.parametrize("scale", [1, 3])
def test_guided_steps_at_the_official_positions(model, io, dtype, scale):
    assert model.config.decode_position_shift == 1
    close(step_logits(model, io, scale), expect(io, f"step_logits_cfg{scale}", dtype), STEP_BOUND[dtype])


def test_unguided_steps_at_scale_zero(model, io, dtype):
    """Kept in float32 only, so float64 is held to the rounding of that."""
    close(step_logits(model, io, 0), io["step_logits_cfg0"], STEP_BOUND[SINGLE])


def test_steps_at_the_official_positions_equal_the_shifted_logits(model, io, dtype):
    close(step_logits(model, io, None), expect(io, "tf_logits_pos1", dtype), BOUND[dtype])


def test_steps_without_the_shift_equal_the_training_logits(model, io, dtype):
    close(step_logits(model, io, None, position_shift=0), expect(io, "tf_logits", dtype), BOUND[dtype])


def test_loss_and_every_gradient(folder, io, dtype):
    model = AiM.from_pretrained(folder, dtype=dtype)
    logits = model(io["tokens"][:, :-1], io["labels"])
    loss = F.cross_entropy(logits.flatten(0, 1), io["tokens"].flatten())
    close(loss, io["loss_f64"].squeeze(), BOUND[dtype])
    loss.backward()
    _, expected = aim_from_official(None, load_file(folder / "grads.safetensors"))
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0, f"{name} has no gradient"
        assert_close(
            gradient,
            expected[name].to(dtype),
            rtol=0,
            atol=BOUND[dtype],
            msg=lambda text, name=name: f"{name}: {text}",
        )


@torch.no_grad()
def test_tokenizer_latents_and_codes(tokenizer, tensors, dtype):
    images = tensors["vq_image"].to(dtype)
    latents = tokenizer.latents(images)
    close(latents, expect(tensors, "vq_latent_prequant", dtype), BOUND[dtype])
    quantised, codes, _ = tokenizer.quantize(latents)
    assert torch.equal(codes.flatten(1), expect(tensors, "vq_indices", dtype))
    assert torch.equal(tokenizer.encode(images), codes)
    # float32 weights: the official float32 code vectors are all there is, and they are exact to rounding.
    close(quantised, tensors["vq_quant"], BOUND[SINGLE] if dtype == SINGLE else 2e-6)


def test_codes_are_far_from_a_tie(tensors):
    """Otherwise equal codes would be luck."""
    assert tensors["vq_index_margin"].min() > 1e-4


@torch.no_grad()
def test_tokenizer_images(tokenizer, tensors, dtype):
    output = tokenizer(tensors["vq_image"].to(dtype))
    close(output.images, expect(tensors, "vq_recon", dtype), BOUND[dtype])
    codes = tensors["vq_indices"].unflatten(1, (4, 4))
    close(tokenizer.decode(codes), tensors["vq_decode_code"], BOUND[SINGLE])


@torch.no_grad()
def test_logits_from_images(golden, tokenizer, tensors, dtype):
    model = AiM.from_pretrained(golden / "adaln", dtype=dtype)
    codes = tokenizer.encode(tensors["vq_image"].to(dtype)).flatten(1)
    close(model(codes[:, :-1], tensors["labels"][:2]), tensors["img_tf_logits"], BOUND[SINGLE])


def test_class_to_image(golden, tokenizer, tensors, dtype):
    model = AiM.from_pretrained(golden / "adaln", dtype=dtype)
    for greedy in (SamplingConfig(cfg_scale=3.0, top_k=1), SamplingConfig(cfg_scale=3.0, temperature=0.0)):
        *_, codes = generate(model, tensors["e2e_labels"], greedy)
        assert torch.equal(codes, tensors["e2e_greedy_tokens_cfg3"])
    with torch.no_grad():
        images = tokenizer.decode(codes.unflatten(1, (4, 4)))
    close(images, tensors["e2e_image"], BOUND[SINGLE])
