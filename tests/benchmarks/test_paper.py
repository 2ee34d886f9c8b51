"""The kernels on paper: the arithmetic, without compiling them."""

import sys

import pytest

from benchmarks import paper
from benchmarks.binaries import count_instructions


def test_without_triton_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(sys, "argv", ["paper"])
    with pytest.raises(SystemExit) as stop:
        paper.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.count("\n") == 1
    assert "Triton cannot be imported" in said


@pytest.fixture
def rows(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(paper, "compiled", lambda *_: paper.Usage(1, 0, 4))
    shape = paper.Shape("aim-b", 32, 64)
    return shape, [*paper.forward_rows(shape, 90)], [*paper.backward_rows(shape, 90)]


def test_every_kernel_of_ours_is_counted(rows):
    _, forward, backward = rows
    assert [sum(len(row.usages) for row in some) for some in (forward, backward)] == [6, 12]


def test_the_head_and_its_loss_are_counted_at_the_end(rows):
    shape, *_ = rows
    end = [*paper.last_rows(shape, 90)]
    assert sum(len(row.usages) for row in end) == 4
    assert sum(row.gigaflop for row in end) == pytest.approx(6 * shape.M * shape.D * shape.vocabulary / 1e9)


def test_products_are_two_operations_for_each_weight_and_token_forward_and_four_backward(rows):
    shape, forward, backward = rows
    weights = shape.D * shape.Z + shape.E * shape.D
    for some, operations in ((forward, 2), (backward, 4)):
        found = sum(row.gigaflop for row in some if "proj" in row.name)
        assert found == pytest.approx(operations * weights * shape.M / 1e9)


def test_instructions_are_those_of_the_binary_and_of_its_loops():
    text = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;          /* 0x00000a0000017a02 */
                                                                   /* 0x000fe20000000f00 */
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ;    /* 0x0000000402027981 */
        /*0020*/                   FADD R3, R3, R2 ;               /* 0x0000000203037221 */
        /*0030*/               @P0 BRA 0x10 ;                      /* 0xfffffffc00fc8947 */
        /*0040*/              @!P0 BRA 0x60 ;                      /* 0xfffffffc00fc8947 */
        /*0050*/                   EXIT ;                          /* 0x000000000000794d */
        /*0060*/                   BRA 0x60;                       /* 0xfffffffc00fc7947 */
        /*0070*/                   NOP;                            /* 0x0000000000007918 */
    """
    assert count_instructions(text) == (6, (3,))


def test_a_kernel_takes_the_longer_of_its_bytes_and_its_operations():
    row = paper.Row("", megabytes=41.0, gigaflop=7.9)
    assert row.microseconds(4.1, 790.0) == pytest.approx(10.0)
    assert row.microseconds(8.2, 790.0) == pytest.approx(10.0)
    assert row.microseconds(4.1, 79.0) == pytest.approx(100.0)


def test_means_of_the_forms_of_the_ssd():
    """A state of half the width halves the bytes of the state form; short images never fold."""
    from benchmarks.decoding_kernels import mean_bytes

    state = 2 * 4 * 3072 * 128
    assert mean_bytes("aim-xl", "state", 256) == state
    assert mean_bytes("aim-xl", "state", 256, width=2) == state / 2
    short = [mean_bytes("aim-xl", form, 256, width=width) for form in ("dual", "folded") for width in (4, 2)]
    assert len(set(short)) == 1
    long, narrow = (mean_bytes("aim-xl", "folded", 4096, width=width) for width in (4, 2))
    assert 0.5 * state < long < 0.6 * state
    passes = 1 + (4096 - 288) + 2 * ((4096 - 288) // 64)
    assert long - narrow == pytest.approx(passes * state / 4 / 4096)


def test_programs_of_a_multiprocessor():
    from benchmarks.binaries import programs_of

    assert programs_of(128, 0, 8) == 2
    assert programs_of(129, 0, 8) == 1
    assert programs_of(16, 0, 1) == 32
    assert programs_of(16, 100 * 1024, 1) == 2
