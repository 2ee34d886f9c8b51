"""The Triton kernel that samples against the plain function: the same tokens from the same logits and numbers."""

import pytest
import torch

from aimamba.ops.sampling import logits as plain

sampling = pytest.importorskip("aimamba.ops.sampling.triton.logits", reason="Triton is not installed")

IMAGES, VOCABULARY = 6, 40
SETTINGS = {
    "plain": {},
    "cool": {"temperature": 0.5},
    "greedy": {"temperature": 0},
    "top-k": {"top_k": 3},
    "top-k of one": {"top_k": 1},
    "top-k of all": {"top_k": 400, "temperature": 2.0},
    "top-p": {"top_p": 0.5},
    "min-p": {"min_p": 0.2},
    "min-p of top-k": {"min_p": 0.05, "top_k": 6, "temperature": 1.5},
    "each its own": {
        "temperature": torch.tensor([1.0, 0.0, 0.3, 1.0, 2.0, 1.0]),
        "top_k": torch.tensor([0, 5, 1, 2, 0, 40]),
        "min_p": torch.tensor([0.0, 0.1, 0.3, 0.0, 0.9, 0.01]),
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("guided", [False, True])
def test_samples_the_same(guided, settings, dtype):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = {name: value.to(device) if torch.is_tensor(value) else value for name, value in settings.items()}
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2 * IMAGES, VOCABULARY, generator=generator)).to(device=device, dtype=dtype)
    if guided:
        settings["unconditional_rows"] = torch.tensor([6, 1, 7, 8, 9, 5], device=device)  # not the second and the last
        settings["scale"] = torch.tensor([2.0, 1.0, 0.5, 1.0, 4.0, 1.0], device=device)
    for _ in range(3):
        uniform = torch.rand(IMAGES, generator=generator, dtype=torch.float64).to(device)
        codes = sampling.guided_sample(logits, uniform, **settings)
        assert codes.dtype == torch.long
        assert codes.tolist() == plain.guided_sample(logits, uniform, **settings).tolist()


def test_ties_at_the_threshold_stay_and_the_ends_of_the_range_hold():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = torch.tensor([[-1.0, 2.0, 0.5, 2.0, -5.0]], device=device).expand(4, 5)
    uniform = torch.tensor([0.0, 0.49, 0.51, 1 - 2**-53], dtype=torch.float64, device=device)
    assert sampling.guided_sample(logits, uniform, top_k=1).tolist() == [1, 1, 3, 3]
    assert sampling.guided_sample(logits, uniform, top_k=2).tolist() == [1, 1, 3, 3]
    assert sampling.guided_sample(logits, uniform).tolist()[0] == 0
    assert sampling.guided_sample(logits, uniform).tolist()[-1] == 4


def test_frequencies_are_the_probabilities():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]], device=device)
    images = 100
    uniform = (torch.arange(images, dtype=torch.float64, device=device) + 0.5) / images
    codes = sampling.guided_sample(logits.expand(images, 4), uniform)
    share = torch.bincount(codes.cpu(), minlength=4) / images
    assert (share - logits[0].softmax(dim=-1).cpu()).abs().max() < 0.011


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.3}, {"top_k": 20}, {"min_p": 0.3}], ids=str)
def test_a_vocabulary_of_several_spans(settings):
    """A span without a token that is left, and numbers at which one span ends and the next begins."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(1)
    vocabulary = 3 * sampling._SPAN + 5
    logits = torch.randn(1, vocabulary, generator=generator)
    logits[:, sampling._SPAN : 2 * sampling._SPAN] -= 1000.0
    ends = logits.double().softmax(dim=-1).cumsum(dim=-1)[0]
    uniform = torch.cat([torch.rand(20, generator=generator, dtype=torch.float64), ends[:: sampling._SPAN // 4]])
    uniform = uniform.clamp(max=1 - 2**-53).to(device)
    logits = logits.to(device).expand(len(uniform), vocabulary)
    codes = sampling.guided_sample(logits, uniform, **settings)
    expected = plain.guided_sample(logits, uniform, **settings)
    assert codes[:20].tolist() == expected[:20].tolist()
    beside = logits[0].double() / settings.get("temperature", 1.0)
    assert (codes - expected).abs().max() <= sampling._SPAN + 1, "a number may lie between two tokens"
    assert (beside[codes] > -900).all()


def test_it_runs_on_the_device_of_the_logits(monkeypatch):
    """Nothing else sets it: engines choose the device for their steps, and sampling comes after them."""
    entered, logits = [], torch.zeros(1, 4, device="cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: entered.append(tensor) or chosen(tensor))
    sampling.guided_sample(logits, torch.zeros(1, dtype=torch.float64, device=logits.device))
    assert [each is logits for each in entered] == [True]
