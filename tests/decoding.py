"""Decoding step by step, for the tests of models and engines."""

import torch


@torch.no_grad()
def decode(stepper, inputs, state=None):
    """Logits (B, L, V) of each step of a model or an engine; inputs are a class and the tokens after it (B, L)."""
    state = stepper.init_state(len(inputs)) if state is None else state
    return torch.stack([stepper.step(token, state) for token in inputs.unbind(1)], dim=1)
