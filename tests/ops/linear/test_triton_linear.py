"""Products with few rows, and with many, against torch's."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.ops.linear import residual as plain
from aimamba.ops.linear.linear import linear

products = pytest.importorskip("aimamba.ops.linear.triton.linear", reason="Triton is not installed")

WIDTH, OUTPUTS = 24, 20  # neither a power of two, nor a whole number of blocks
# With many rows 24 numbers of about 1 are rounded before the product, each to 8 bits, in either way of computing it.
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-6, "atol": 2**-4}}


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def make(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("numbers", [16, 256])
def test_linear(normal, rows, numbers, dtype):
    x, weight = normal(rows, WIDTH, dtype=dtype), normal(OUTPUTS, WIDTH, dtype=dtype)
    y = products.linear(x, weight, launch=products.Launch(numbers, 4))
    assert y.dtype == dtype
    assert_close(y, linear(x, weight), **CLOSE[dtype])


@pytest.mark.parametrize(("rows", "outputs", "inputs", "parts"), [
    (128, 256, 1536, 4), (128, 256, 384, 3), (512, 3072, 768, 1), (9, 20, 24, 1), (2, 20, 24, 1),
])  # fmt: skip
def test_a_product_in_parts(normal, rows, outputs, inputs, parts, monkeypatch):
    monkeypatch.setattr(products, "processors", lambda _: 132)
    x, weight = normal(rows, inputs), normal(outputs, inputs)
    found = products.split_linear(x, weight)
    assert found.shape == (parts, rows, outputs)
    assert_close(found.sum(dim=0), linear(x, weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 9])
@pytest.mark.parametrize("given", [(), ("mixed", "gate"), ("mixed", "gate", "squares")], ids=len)
def test_residual_linear(normal, given, rows, dtype):
    shift, scale, gate = normal(rows, 2, 3, WIDTH, dtype=dtype)[:, 1].unbind(1)
    parts = {"gate": gate, "mixed": normal(rows, WIDTH, dtype=dtype), "squares": normal(rows, 5).square()}
    options = {name: parts[name] for name in given} | {"inner": 20}
    residual, norm_weight = normal(rows, WIDTH), normal(WIDTH)
    weight = normal(OUTPUTS, WIDTH, dtype=dtype)
    expected = plain.residual_linear_step(residual.clone(), norm_weight, shift, scale, weight, **options)
    launch = products.Launch(128, 4)
    found = products.residual_linear_step(residual, norm_weight, shift, scale, weight, **options, launch=launch)
    assert_close(found, expected, **CLOSE[dtype])


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_programs_with_several_tiles(normal, rows, monkeypatch):
    """On a device of two multiprocessors the last tile is not full, and the last program has fewer outputs."""
    monkeypatch.setattr(products, "processors", lambda _: 2)
    launch, weight = products.Launch(32, 4), normal(19, WIDTH)
    division = products.divide(weight, launch)
    assert (division.programs, division.span, division.block, division.tiles) == (2, 10, 4, 3)
    residual, norm_weight, (shift, scale) = normal(rows, WIDTH), normal(WIDTH), normal(2, rows, WIDTH)
    expected = plain.residual_linear_step(residual.clone(), norm_weight, shift, scale, weight)
    found = products.residual_linear_step(residual, norm_weight, shift, scale, weight, launch=launch)
    assert_close(found, expected, **CLOSE[torch.float32])
    assert_close(products.linear(residual, weight, launch=launch), linear(residual, weight), **CLOSE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_warps_that_share_an_output(normal, rows, dtype, monkeypatch):
    """Each takes some of the columns, also those that a power of two has beyond the width."""
    monkeypatch.setattr(products, "processors", lambda _: 2)
    monkeypatch.setattr(products, "_LANES", 8)
    monkeypatch.setattr(products, "_MOST_NUMBERS", 32)
    launch, weight = products.Launch(64, 4), normal(19, WIDTH, dtype=dtype)
    division = products.divide(weight, launch, kept=4)
    assert (division.shares, division.parts, division.block) == (4, 1, 1)
    residual, norm_weight = normal(rows, WIDTH), normal(WIDTH)
    shift, scale = normal(2, rows, WIDTH, dtype=dtype)
    expected = plain.residual_linear_step(residual.clone(), norm_weight, shift, scale, weight)
    found = products.residual_linear_step(residual, norm_weight, shift, scale, weight, launch=launch)
    assert_close(found, expected, **CLOSE[dtype])
    x = residual.to(dtype)
    assert products.divide(weight, launch).shares > 1
    assert_close(products.linear(x, weight, launch=launch), linear(x, weight), **CLOSE[dtype])


@pytest.mark.parametrize("kept", [0, 2, 4])
@pytest.mark.parametrize(("outputs", "inputs"), [
    (16384, 768), (16384, 1536), (4384, 1024), (6448, 1536), (1536, 3072), (8576, 2048), (2048, 4096),
])  # fmt: skip
def test_published_products_are_divided_evenly(outputs, inputs, kept, monkeypatch):
    """Every output has a program, tiles fit into the registers, and no program waits for many others to end."""
    monkeypatch.setattr(products, "processors", lambda _: 132)
    weight = torch.empty(outputs, inputs, device="meta", dtype=torch.bfloat16)
    division = products.divide(weight, products.DEFAULT, kept=kept)
    columns = division.parts * division.lanes
    assert inputs <= division.shares * columns < 2 * inputs
    assert (division.programs - 1) * division.span < outputs <= division.programs * division.span
    assert division.span <= division.tiles * division.block < division.span + division.block
    assert division.block * division.shares * columns <= products.DEFAULT.numbers
    assert kept * columns <= 4096, "numbers that a warp keeps"
    assert division.programs <= 132 * -(-division.programs // 132) <= 2 * 132
    assert division.shares * division.block >= products.DEFAULT.warps or division.span < division.block


def test_the_head_has_programs_of_its_own_size(monkeypatch):
    """As measured on an H200, see docs/log.md."""
    monkeypatch.setattr(products, "processors", lambda _: 132)
    shapes = [(16384, 768), (16384, 2048), (8576, 2048), (768, 1536)]
    chosen = [products.launch_of(torch.empty(shape, device="meta")) for shape in shapes]
    assert chosen == [products.MANY_OUTPUTS] * 2 + [products.DEFAULT] * 2
