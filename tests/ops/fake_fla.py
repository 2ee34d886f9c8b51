"""Stands in for flash-linear-attention: what its documentation says, token by token, in any dtype."""

import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import Tensor

from aimamba.ops import backends, flash_linear_attention


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members) -> None:
    """Install a package with one module."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        module = types.ModuleType(path)
        module.__spec__ = ModuleSpec(path, None)
        monkeypatch.setitem(sys.modules, path, module)
    vars(sys.modules[name]).update(members)


def simple_gla(q, k, v, g, *, scale, initial_state, output_final_state) -> tuple[Tensor, Tensor]:
    """The recurrence h = exp(g) h + k v^T, o = q h, with q, k and v (B, T, H, ...) and h (B, H, K, V)."""
    assert output_final_state
    assert q.dtype == k.dtype == v.dtype
    h = first_state(k, v, initial_state)
    outputs = []
    for t in range(q.shape[1]):
        h = h * g[:, t].exp()[..., None, None] + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t].to(h) * scale, h))
    return torch.stack(outputs, dim=1).to(v.dtype), h


def gated_delta_rule(q, k, v, g, beta, *, scale, initial_state, output_final_state) -> tuple[Tensor, Tensor]:
    """The recurrence h = exp(g) h + k (beta (v - k exp(g) h))^T, o = q h."""
    assert output_final_state
    assert q.dtype == k.dtype == v.dtype
    h = first_state(k, v, initial_state)
    outputs = []
    for t in range(q.shape[1]):
        h = h * g[:, t].exp()[..., None, None]
        key = k[:, t].to(h)
        moved = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhk,bhkv->bhv", key, h))
        h = h + key[..., None] * moved[:, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t].to(h) * scale, h))
    return torch.stack(outputs, dim=1).to(v.dtype), h


def first_state(k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    shape = *k[:, 0].shape, v.shape[-1]
    assert state is None or state.shape == shape
    return torch.zeros(shape) if state is None else state


def forget(*caches) -> None:
    """Forget earlier trials, and the package."""
    module = flash_linear_attention
    for each in (module.is_installed, module.open_ssd, module.open_delta, module.open_trapezoid, *caches):
        each.cache_clear()


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU as a CUDA device, with no backend named."""
    monkeypatch.setattr(backends, "_on_cuda", lambda x: True)
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
