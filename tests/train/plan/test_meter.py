"""What the meter counts, on the meta device and on a real one."""

import pytest
import torch

from aimamba.train.plan.meter import ACTIVATIONS, CASTS, GRADIENTS, Meter

SIZE = 4 * 1000


def make(device):
    return torch.empty(1000, device=device)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_what_is_freed_is_no_longer_counted(device):
    with Meter() as meter:
        one, other = make(device), make(device)
        assert meter.live[ACTIVATIONS] == 2 * SIZE
        del one
        third = make(device)
        assert meter.live[ACTIVATIONS] == 2 * SIZE
    assert meter.peak == 2 * SIZE
    del other, third
    assert meter.live[ACTIVATIONS] == 0


def test_a_view_is_not_counted_again():
    with Meter() as meter:
        whole = make("meta")
        halves = whole.view(2, 500)[1:]
        assert meter.live[ACTIVATIONS] == SIZE
        del whole
        assert meter.live[ACTIVATIONS] == SIZE  # the view keeps the storage
        del halves
    assert meter.live[ACTIVATIONS] == 0


def test_what_autograd_keeps_is_counted_until_the_backward_pass():
    weight = make("meta").requires_grad_()
    with Meter() as meter:
        loss = (weight * 2).exp().exp().sum()  # keeps the results of both exponentials
        assert 2 * SIZE <= meter.live[ACTIVATIONS] < 3 * SIZE
        loss.backward()
    assert meter.live[ACTIVATIONS] < SIZE + 100
    assert meter.peak >= 3 * SIZE


def test_gradients_and_casts_have_their_kinds():
    weight = make("meta").requires_grad_()
    meter = Meter()
    weight.register_post_accumulate_grad_hook(meter.is_gradient)
    with meter:
        with meter.counting_as(CASTS):
            narrow = weight.bfloat16()
        narrow.sum().backward()
    assert meter.live[GRADIENTS] == meter.peaks[GRADIENTS] == SIZE
    assert meter.live[CASTS] == SIZE // 2
