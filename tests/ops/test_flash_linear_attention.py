"""The recurrences of Gated DeltaNet and Mamba-3 by flash-linear-attention: when it is taken, and what it gets."""

import sys

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.errors import ConfigError
from aimamba.models import AiM, AiMConfig
from aimamba.ops import backends
from aimamba.ops.delta import dispatch as delta
from aimamba.ops.delta.chunked import delta_chunked
from aimamba.ops.delta.reference import delta_recurrent
from aimamba.ops.trapezoid import dispatch as trapezoid
from aimamba.ops.trapezoid.chunked import trapezoid_chunked
from aimamba.ops.trapezoid.reference import TrapezoidState, trapezoid_recurrent
from tests.ops import fake_fla

CPU = torch.device("cpu")


def make_delta(dtype: torch.dtype = torch.bfloat16, *, first: bool = True) -> list:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 20, 3, 8), F.normalize(torch.randn(2, 20, 3, 8), dim=-1), torch.randn(2, 20, 3, 4)
    gates = -F.softplus(torch.randn(2, 20, 3)), torch.randn(2, 20, 3).sigmoid()
    return [q, k, v.to(dtype), *gates, torch.randn(2, 3, 4, 8) if first else None]


def make_trapezoid(dtype: torch.dtype = torch.bfloat16, *, first: bool = True) -> list:
    torch.manual_seed(0)
    dt, log_decay = F.softplus(torch.randn(2, 20, 3)), -F.softplus(torch.randn(2, 20, 3))
    share, B, C = torch.randn(2, 20, 3).sigmoid(), torch.randn(2, 20, 3, 8), torch.randn(2, 20, 3, 8)
    state = TrapezoidState(torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4), torch.randn(2, 3, 8))
    return [torch.randn(2, 20, 3, 4).to(dtype), dt, log_decay, share, B, C, state if first else None]


SCANS = {
    "delta": (delta, delta.delta_scan, delta_chunked, delta_recurrent, make_delta),
    "trapezoid": (trapezoid, trapezoid.trapezoid_scan, trapezoid_chunked, trapezoid_recurrent, make_trapezoid),
}


@pytest.fixture(params=list(SCANS))
def scan(request, monkeypatch):
    """One of the recurrences, on a pretended CUDA device: module, dispatch, plain form, oracle, inputs."""
    fake_fla.pretend_cuda(monkeypatch)
    fake_fla.forget(delta.unsupported, trapezoid.unsupported)
    yield SCANS[request.param]
    fake_fla.forget(delta.unsupported, trapezoid.unsupported)


@pytest.fixture
def calls(monkeypatch) -> list[torch.dtype]:
    """Install the package; the dtypes of the values that it gets."""
    calls = []

    def noting(form):
        return lambda q, k, v, *rest, **options: calls.append(v.dtype) or form(q, k, v, *rest, **options)

    fake_fla.install(monkeypatch, "fla.ops.gated_delta_rule", chunk_gated_delta_rule=noting(fake_fla.gated_delta_rule))
    simple = sys.modules["fla"], sys.modules["fla.ops"]
    fake_fla.install(monkeypatch, "fla.ops.simple_gla", chunk_simple_gla=noting(fake_fla.simple_gla))
    for module in simple:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def flat(found) -> list[torch.Tensor]:
    y, state = found
    return [y, *(state if isinstance(state, tuple) else [state])]


@pytest.mark.parametrize("first", [False, True])
def test_an_installed_package_is_tried_and_taken_in_half_precision(scan, calls, caplog, first):
    _, dispatch, _, oracle, make = scan
    inputs = make(first=first)
    found, exact = flat(dispatch(*inputs)), flat(oracle(*inputs))
    assert calls == [torch.bfloat16] * 2, "the trial, and the call"
    for ours, wanted in zip(found, exact, strict=True):
        assert (ours.dtype, ours.shape) == (wanted.dtype, wanted.shape)
        assert (ours.float() - wanted.float()).abs().max() <= 0.03 * wanted.float().abs().max()
    dispatch(*inputs)
    assert len(calls) == 3, "one trial is enough"
    assert not caplog.records


def test_gradients_arrive(scan, calls):
    _, dispatch, plain, _, make = scan
    results = []
    for form in (dispatch, plain):
        leaves = [tensor.detach().requires_grad_() for tensor in make(first=False)[:-1]]
        y, _ = form(*leaves)
        results.append(torch.autograd.grad(y.float().square().sum(), leaves))
    for ours, wanted in zip(*results, strict=True):
        assert ours.dtype == wanted.dtype
        assert (ours.float() - wanted.float()).norm() <= 0.03 * wanted.float().norm()
    assert calls


@pytest.mark.parametrize("named", [None, "fla"])
def test_float32_is_left_to_plain_operations(scan, calls, monkeypatch, named):
    _, dispatch, plain, _, make = scan
    if named:
        monkeypatch.setenv(backends.ENVIRONMENT, named)
    inputs = make(torch.float32)
    assert_close(flat(dispatch(*inputs)), flat(plain(*inputs)), rtol=0, atol=0)
    assert not calls


@pytest.mark.parametrize("name", ["plain", "triton", "mamba-ssm"])
def test_other_backends_have_no_form_of_it(scan, calls, monkeypatch, name):
    _, dispatch, plain, _, make = scan
    monkeypatch.setenv(backends.ENVIRONMENT, name)
    assert_close(flat(dispatch(*make())), flat(plain(*make())), rtol=0, atol=0)
    assert not calls


def test_a_wrong_name_and_a_missing_package(scan, monkeypatch):
    _, dispatch, plain, _, make = scan
    for name in ("fla", "fla.ops.simple_gla", "fla.ops.gated_delta_rule"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_close(flat(dispatch(*make())), flat(plain(*make())), rtol=0, atol=0)
    monkeypatch.setenv(backends.ENVIRONMENT, "fla")
    with pytest.raises(ConfigError, match=r"scan 'fla' cannot be imported .*pip install aimamba\[fla\]"):
        dispatch(*make())
    monkeypatch.setenv(backends.ENVIRONMENT, "flaa")
    with pytest.raises(ConfigError, match=r"got 'flaa' \(did you mean 'fla'\?\); see AIMAMBA_SCAN"):
        dispatch(*make())


def test_a_package_that_fails_on_import_is_one_line(scan, monkeypatch, tmp_path):
    """As flash-linear-attention does where Triton finds no driver."""
    (tmp_path / "fla").mkdir()
    (tmp_path / "fla" / "__init__.py").write_text("raise RuntimeError('no driver\\nand more')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("fla", "fla.ops", "fla.ops.simple_gla", "fla.ops.gated_delta_rule"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    _, dispatch, plain, _, make = scan
    assert_close(flat(dispatch(*make())), flat(plain(*make())), rtol=0, atol=0)
    monkeypatch.setenv(backends.ENVIRONMENT, "fla")
    with pytest.raises(ConfigError, match=r"^scan 'fla' cannot be imported \(RuntimeError: no driver\); [^\n]*$"):
        dispatch(*make())


@pytest.mark.parametrize("fault", ["fails", "wrong"])
def test_a_kernel_that_does_not_work_is_not_used_and_logged_once(scan, monkeypatch, caplog, fault):
    def broken(q, k, v, g, *rest, scale, **options):
        if fault == "fails":
            raise RuntimeError("no such architecture\nand more")
        form = fake_fla.gated_delta_rule if rest else fake_fla.simple_gla
        return form(q, k, v, g, *rest, scale=1.2 * scale, **options)

    fake_fla.install(monkeypatch, "fla.ops.gated_delta_rule", chunk_gated_delta_rule=broken)
    simple = sys.modules["fla.ops.gated_delta_rule"]
    fake_fla.install(monkeypatch, "fla.ops.simple_gla", chunk_simple_gla=broken)
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", simple)
    _, dispatch, plain, _, make = scan
    for _ in range(2):
        assert_close(flat(dispatch(*make())), flat(plain(*make())), rtol=0, atol=0)
    [record] = caplog.records
    said = "RuntimeError: no such architecture" if fault == "fails" else "y or its gradient is off by 0."
    assert said in record.message
    assert "more" not in record.message


def test_the_compiler_and_the_cpu_get_plain_operations(scan, calls, monkeypatch):
    _, dispatch, plain, _, make = scan
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(flat(dispatch(*make())), flat(plain(*make())), rtol=0, atol=0)
    monkeypatch.undo()
    assert_close(flat(dispatch(*make())), flat(plain(*make())), rtol=0, atol=0)
    assert not calls


@pytest.mark.parametrize("mixer", ["gated-deltanet", "mamba3"])
def test_a_model_trains_by_the_kernel(calls, monkeypatch, mixer):
    fake_fla.pretend_cuda(monkeypatch)
    fake_fla.forget(delta.unsupported, trapezoid.unsupported)
    config = AiMConfig(
        width=32,
        num_blocks=2,
        adaln="none",
        vocab_size=8,
        num_tokens=16,
        num_classes=2,
        state_size=16,
        head_width=16,
        mixer=mixer,
    )
    codes, gradients = torch.arange(15)[None] % 8, {}
    for name in ("plain", ""):
        monkeypatch.setenv(backends.ENVIRONMENT, name)
        model = AiM(config)
        model.init_weights(torch.Generator().manual_seed(0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(codes, torch.tensor([1]))
        logits.float().square().mean().backward()
        gradients[name] = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    assert len(calls) == 3, "two blocks, after a trial"
    assert (gradients[""] - gradients["plain"]).norm() <= 0.05 * gradients["plain"].norm()


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(SCANS))
def test_the_real_package_works_on_a_card(name):
    pytest.importorskip("fla", reason="flash-linear-attention is not installed")
    fake_fla.forget(delta.unsupported, trapezoid.unsupported)
    module = SCANS[name][0]
    assert module.unsupported(torch.device("cuda"), torch.bfloat16, 4, 64, 64) is None
