"""The training kernels on paper: the arithmetic, without compiling them."""

import pytest

paper = pytest.importorskip("benchmarks.paper")
pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(paper, "compiled", lambda *_: paper.Usage(1, 0, 4))
    shape = paper.Shape("aim-b", 32, 64)
    return shape, [*paper.forward_rows(shape, 90)], [*paper.backward_rows(shape, 90)]


def test_every_kernel_of_ours_is_counted(rows):
    _, forward, backward = rows
    assert [sum(len(row.usages) for row in some) for some in (forward, backward)] == [6, 11]


def test_products_are_two_operations_for_each_weight_and_token_forward_and_four_backward(rows):
    shape, forward, backward = rows
    weights = shape.D * shape.Z + shape.E * shape.D
    for some, operations in ((forward, 2), (backward, 4)):
        found = sum(row.gigaflop for row in some if "proj" in row.name)
        assert found == pytest.approx(operations * weights * shape.M / 1e9)


def test_a_kernel_takes_the_longer_of_its_bytes_and_its_operations():
    row = paper.Row("", megabytes=41.0, gigaflop=7.9)
    assert row.microseconds(4.1, 790.0) == pytest.approx(10.0)
    assert row.microseconds(8.2, 790.0) == pytest.approx(10.0)
    assert row.microseconds(4.1, 79.0) == pytest.approx(100.0)
