"""Which backend the scan chooses, and that each gets the arguments it documents."""

import sys

import pytest
import torch
from torch.testing import assert_close

from aimamba.errors import ConfigError
from aimamba.ops import backends
from aimamba.ops.mixer import dispatch as mixer
from aimamba.ops.ssd import dispatch as scan
from aimamba.ops.ssd.autograd import ssd_autograd
from aimamba.ops.ssd.chunked import ssd_chunked
from aimamba.ops.ssd.reference import ssd_recurrent
from tests.ops import fake_fla


@pytest.fixture(autouse=True)
def no_memory(monkeypatch):
    """Forget earlier trials and ignore the environment."""
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    caches = scan.unsupported, scan._triton, scan._mamba_ssm
    fake_fla.forget(*caches)
    yield
    fake_fla.forget(*caches)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def cuda(monkeypatch):
    """Without a CUDA device, treat the CPU as one; the kernels are interpreted."""
    if DEVICE == "cpu":
        monkeypatch.setattr(backends, "_on_cuda", lambda x: True)


def make(dtype=torch.float32, *, length=20, heads=2, first=True, device=DEVICE):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device)

    dt, A = torch.nn.functional.softplus(normal(2, length, heads)), -normal(heads).exp()
    x, B, C = (normal(2, length, *rest).to(dtype) for rest in ((heads, 16), (16,), (16,)))
    return x, dt, A, B, C, normal(2, heads, 16, 16) if first else None


def test_a_cpu_ignores_the_named_backend(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT, "mamba-ssm")
    inputs = make(device="cpu")
    assert_close(scan.ssd_scan(*inputs, chunk_size=8), ssd_autograd(*inputs, chunk_size=8), rtol=0, atol=0)


def test_triton_is_the_default_for_bfloat16_alone(cuda, caplog):
    pytest.importorskip("triton", reason="Triton is not installed")
    narrow, wide = make(torch.bfloat16), make()
    assert scan.choose(None, wide[0], 16, 64) is ssd_autograd
    assert scan.choose(None, narrow[0], 16, 64) is scan._triton()
    expected = ssd_chunked(*(None if tensor is None else tensor.double() for tensor in narrow))[0]
    assert (scan.ssd_scan(*narrow)[0].double() - expected).abs().max() <= 0.02 * expected.abs().max()
    assert_close(scan.ssd_scan(*wide, backend="triton"), ssd_autograd(*wide), rtol=1e-4, atol=1e-4)
    assert_close(
        scan.ssd_scan(*(tensor.double() for tensor in wide), backend="triton")[0],
        ssd_recurrent(*wide)[0].double(),
        rtol=1e-4,
        atol=1e-4,
    )
    assert not caplog.records


def test_a_kernel_that_breaks_is_not_used_and_logged_once(cuda, caplog, monkeypatch):
    def broken():
        raise RuntimeError("ptxas is gone\nand more")

    monkeypatch.setattr(scan, "_triton", broken)
    inputs = make(torch.bfloat16)
    for _ in range(3):
        assert_close(scan.ssd_scan(*inputs), ssd_autograd(*inputs), rtol=0, atol=0)
    (record,) = caplog.records
    assert "RuntimeError: ptxas is gone" in record.message
    assert "more" not in record.message


def test_a_kernel_with_a_wrong_gradient_is_not_used(cuda, caplog, monkeypatch):
    def wrong(x, dt, A, B, C, *rest, **options):
        return ssd_autograd(x, dt, A, B + 0.2 * (B - B.detach()), C, *rest, **options)

    monkeypatch.setattr(scan, "_triton", lambda: wrong)
    assert scan.choose(None, make(torch.bfloat16)[0], 16, 64) is ssd_autograd
    assert "B or its gradient is off by 0.2" in caplog.text


def test_without_triton(cuda, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    inputs = make(torch.bfloat16)
    assert_close(scan.ssd_scan(*inputs), ssd_autograd(*inputs), rtol=0, atol=0)
    assert "Triton cannot be imported" in caplog.text
    with pytest.raises(ConfigError, match=r"scan 'triton' cannot be used: .*pip install aimamba\[cuda\]"):
        scan.ssd_scan(*inputs, backend="triton")


def test_the_trial_works_inside_autocast_checkpoint_and_inference(cuda):
    pytest.importorskip("triton", reason="Triton is not installed")
    x, *rest = make(torch.bfloat16, first=False)
    x.requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = torch.utils.checkpoint.checkpoint(lambda x: scan.ssd_scan(x, *rest)[0], x, use_reentrant=False)
    y.float().sum().backward()
    assert x.grad.isfinite().all()
    scan.unsupported.cache_clear()
    with torch.inference_mode():
        assert scan.choose(None, x, 16, 64) is scan._triton()


def test_a_model_trains_by_the_kernels(cuda, make_aim, monkeypatch):
    scans = pytest.importorskip("aimamba.ops.ssd.triton.chunked", reason="Triton is not installed")
    taken, plain = [], scans.ssd_chunked
    monkeypatch.setattr(mixer, "_triton_applies", lambda *_: False)  # which would do without the scan
    monkeypatch.setattr(scans, "ssd_chunked", lambda *inputs, **rest: taken.append(1) or plain(*inputs, **rest))
    gradients, codes, labels = {}, torch.arange(8, device=DEVICE)[None], torch.tensor([0], device=DEVICE)
    for name in ("plain", ""):
        monkeypatch.setenv(backends.ENVIRONMENT, name)
        model = make_aim().train().to(DEVICE)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            logits = model(codes, labels, checkpointing=True)
        logits.float().square().mean().backward()
        gradients[name] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert len(taken) == 5, "in two blocks, twice each, after a trial"
    ours, expected = gradients[""], gradients["plain"]
    assert (ours - expected).norm() <= 0.03 * expected.norm()


def test_the_compiler_gets_plain_operations(cuda, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    inputs = make(torch.bfloat16)
    assert_close(scan.ssd_scan(*inputs, backend="triton"), ssd_chunked(*inputs), rtol=0, atol=0)


def test_names(cuda, monkeypatch):
    inputs = make()
    monkeypatch.setenv(backends.ENVIRONMENT, "plain")
    assert_close(scan.ssd_scan(*inputs), ssd_autograd(*inputs), rtol=0, atol=0)
    monkeypatch.setenv(backends.ENVIRONMENT, "tritn")
    with pytest.raises(ConfigError, match=r"got 'tritn' \(did you mean 'triton'\?\); see AIMAMBA_SCAN"):
        scan.ssd_scan(*inputs)
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", None)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.triton.ssd_combined", None)
    for name in ("fla", "mamba-ssm"):
        with pytest.raises(ConfigError, match=rf"scan '{name}' cannot be imported .*pip install aimamba\[{name}\]"):
            scan.ssd_scan(*inputs, backend=name)


@pytest.mark.parametrize("first", [False, True])
def test_mamba_ssm_gets_what_it_documents(cuda, monkeypatch, first):
    def combined(x, dt, A, B, C, chunk_size, *, initial_states, return_final_states):
        assert return_final_states
        assert (B.shape, C.shape, chunk_size) == ((2, 20, 1, 16), (2, 20, 1, 16), 8)
        return ssd_recurrent(x, dt, A, B[:, :, 0], C[:, :, 0], initial_states)

    fake_fla.install(monkeypatch, "mamba_ssm.ops.triton.ssd_combined", mamba_chunk_scan_combined=combined)
    inputs = make(first=first)
    found = scan.ssd_scan(*inputs, chunk_size=8, backend="mamba-ssm")
    assert_close(found, ssd_recurrent(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_fla_gets_what_it_documents(cuda, monkeypatch, first):
    fake_fla.install(monkeypatch, "fla.ops.simple_gla", chunk_simple_gla=fake_fla.simple_gla)
    inputs = make(first=first)
    found = scan.ssd_scan(*inputs, backend="fla")
    assert_close(found, ssd_recurrent(*inputs), rtol=1e-4, atol=1e-4)
