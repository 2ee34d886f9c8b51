"""The engine for CUDA devices. What needs one is marked ``gpu``; the rest of it is tested in ``test_recorded``."""

from itertools import islice

import pytest
import torch
from torch.testing import assert_close

from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig, generate
from aimamba.generation.capture import capture
from aimamba.generation.engines import recorded_step
from aimamba.generation.engines.cuda_graphs import CudaGraphEngine
from decoding import decode
from waiting import counted_waits

VARIANTS = [
    {"adaln": "block", "form": "dual"},
    {"adaln": "group", "form": "state"},
    {"adaln": "block", "form": "folded"},
    {"adaln": "group", "mixer": "attention", "positions": "rope"},
]
# Published proportions: heads of 64 and states of 128, which is what the kernels are laid out for.
SHAPE = {"width": 128, "head_width": 64, "state_size": 128, "num_blocks": 4, "num_tokens": 100, "vocab_size": 512}


@pytest.fixture(params=VARIANTS, ids=lambda variant: "-".join(variant.values()))
def built(request, make_aim, monkeypatch):
    """A model on the device, and its engine, which folds after 16 tokens and then after every 12."""
    monkeypatch.setattr(recorded_step, "first_fold", lambda *_: 16)
    monkeypatch.setattr(recorded_step, "FOLD_EVERY", 12)
    settings = dict(request.param)
    form = settings.pop("form", None)
    model = make_aim(**SHAPE, **settings).cuda()
    return model, CudaGraphEngine(model, form=form)


def tokens(rows, length=100, seed=0):
    return torch.randint(5, (rows, length), generator=torch.Generator().manual_seed(seed)).cuda()


@pytest.fixture
def exact_products():
    """No TF32: the plain path is the measure."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", torch.float32, "it runs on CUDA devices, and the model is on cpu; choose the engine 'plain'"),
        pytest.param(
            "cuda", torch.float16, "it takes float32 or bfloat16, and the model is in float16", marks=pytest.mark.gpu
        ),
    ],
)
def test_what_it_cannot_take_is_refused(make_aim, device, dtype, reason):
    with pytest.raises(ConfigError, match=reason):
        CudaGraphEngine(make_aim(dtype=dtype).to(device))


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_products")
def test_replays_equal_plain_steps_whatever_the_labels_and_rows(built):
    model, engine = built
    for rows in (2, 1, 12, 2):
        inputs = tokens(rows, seed=rows)
        assert_close(decode(engine, inputs), decode(model, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_products")
def test_rows_at_different_positions(built):
    model, engine = built
    inputs = tokens(3)
    expected = decode(model, inputs)
    ahead, behind = engine.init_state(2), engine.init_state(1)
    decode(engine, inputs[:2, :70], ahead)
    decode(engine, inputs[2:, :3], behind)
    together = ahead.join([behind])
    for step in range(10):
        token = torch.stack([inputs[0, 70 + step], inputs[1, 70 + step], inputs[2, 3 + step]])
        wanted = torch.stack([expected[0, 70 + step], expected[1, 70 + step], expected[2, 3 + step]])
        assert_close(engine.step(token, together), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_bfloat16_stays_near(built, make_aim):
    model, engine = built
    inputs = tokens(4)
    expected = decode(model, inputs)
    form = engine._step.form
    narrow = make_aim(**SHAPE, mixer=model.config.mixer, adaln=model.config.adaln, positions=model.config.positions)
    narrow = narrow.cast(torch.bfloat16).cuda()
    logits = decode(CudaGraphEngine(narrow, form=form), inputs).float()
    plain = decode(narrow, inputs).float()
    error, plain_error = (logits - expected).abs().mean(), (plain - expected).abs().mean()
    assert error < 1.5 * plain_error, "no further from float32 than plain bfloat16 is"


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_products")
def test_greedy_images_are_those_of_the_plain_path(built):
    model, engine = built
    labels, config = torch.tensor([0, 3, 5]), SamplingConfig(temperature=0.0, cfg_scale=1.5)
    *_, expected = generate(model, labels, config, engine="plain")
    *_, codes = generate(model, labels, config, engine=engine)
    assert torch.equal(codes, expected)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(cfg_scale=2.0, temperature=0.8, top_k=50, top_p=0.9),
        [SamplingConfig(cfg_scale=2.0), SamplingConfig(top_k=7), SamplingConfig(temperature=0.0)],
    ],
    ids=["plain", "all", "each"],
)
def test_no_step_waits_for_the_device(built, config):
    model, engine = built
    labels = torch.tensor([0, 3, 5])
    list(generate(model, labels, config, engine=engine))  # everything is recorded
    run = generate(model, labels, config, engine=engine)
    next(run)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [codes.shape[1] for codes in islice(run, model.config.num_tokens - 1)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == list(range(2, model.config.num_tokens + 1))
    with counted_waits("cuda") as waits:
        assert list(run) == []
    assert len(waits) == 1, "the last logits are checked, after the last step"


@pytest.mark.gpu
def test_memory_does_not_grow_over_calls(built):
    _, engine = built
    inputs = tokens(4, 20)
    for _ in range(2):
        decode(engine, inputs)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        decode(engine, inputs)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
def test_sampling_can_be_recorded_too():
    from aimamba.ops.sampling.logits import guide, sample

    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(4, 512, device="cuda", generator=generator)
    uniform = torch.rand(2, device="cuda", dtype=torch.float64, generator=generator)

    def run():
        mixed = guide(logits[:2], logits[2:], 2.0)
        return sample(mixed, uniform, temperature=0.9, top_k=50, top_p=0.9)

    replay = capture(run)
    logits.normal_(generator=generator)
    codes = replay().clone()
    assert torch.equal(codes, run())
