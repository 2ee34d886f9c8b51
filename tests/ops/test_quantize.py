"""The nearest code against brute force, with slices of every size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimamba.ops.quantize import nearest_code


def unit_rows(count, width, seed):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


@given(st.integers(0, 40), st.integers(1, 30), st.integers(1, 8), st.integers(1, 500), st.integers(0, 999))
def test_equals_the_smallest_distance_in_every_slicing(count, codes, width, scores_at_once, seed):
    vectors, codebook = unit_rows(count, width, seed), unit_rows(codes, width, seed + 1)
    found = nearest_code(vectors, codebook, scores_at_once=scores_at_once)
    distances = torch.cdist(vectors, codebook, compute_mode="donot_use_mm_for_euclid_dist")
    assert found.shape == (count,)
    chosen = distances.gather(1, found[:, None]).squeeze(1)
    assert torch.allclose(chosen, distances.amin(dim=1), atol=1e-7)


@pytest.mark.parametrize("scores_at_once", [1, 100, 1024, 1 << 24])
def test_slices_agree_exactly(scores_at_once):
    vectors, codebook = unit_rows(333, 8, 0).float(), unit_rows(128, 8, 1).float()
    assert torch.equal(nearest_code(vectors, codebook, scores_at_once=scores_at_once), nearest_code(vectors, codebook))


def test_memory_is_bounded(monkeypatch):
    sizes = []
    matmul = torch.Tensor.__matmul__

    def watched(left, right):
        product = matmul(left, right)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    nearest_code(unit_rows(100, 4, 0), unit_rows(10, 4, 1), scores_at_once=70)
    assert max(sizes) <= 70
    assert sum(sizes) == 1000


def test_codes_find_themselves_and_ties_go_to_the_lowest():
    codebook = unit_rows(50, 8, 3)
    assert torch.equal(nearest_code(codebook, codebook), torch.arange(50))
    twice = torch.cat([codebook[:1], codebook[:1], codebook[1:]])
    assert nearest_code(codebook[:1], twice).item() == 0


def test_no_gradient_is_kept():
    vectors = unit_rows(3, 2, 0).requires_grad_()
    assert not nearest_code(vectors, unit_rows(4, 2, 1)).requires_grad
