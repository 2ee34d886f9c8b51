"""A mixer small enough for Triton's interpreter, which takes 50 ms for each program, for tests of its steps."""

import torch

from aimamba.ops.mixer.weights import MixerWeights

HEADS, WIDTH, STATES, TAPS, ROWS = 2, 8, 16, 3, 2
INNER, CHANNELS = HEADS * WIDTH, HEADS * WIDTH + 2 * STATES
BEGINS = torch.tensor([0, 3])  # the tokens before which the rows begin
# A narrow result is rounded once in either; inputs of the sums differ by one rounding where they are cached.
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-6, "atol": 2**-6}}


def make_weights(dtype, device, *, wide=torch.float32, decay=1.0):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0, dtype=wide):
        return (torch.randn(shape, generator=generator) * scale).to(device=device, dtype=dtype)

    return MixerWeights(
        normal(CHANNELS, TAPS, scale=0.5, dtype=dtype),
        normal(CHANNELS, scale=0.1, dtype=dtype),
        normal(HEADS) - 2,
        normal(HEADS) + decay,
        normal(HEADS),
        1 + normal(INNER, scale=0.1),
    )


def run(step, memory, weights, dtype, device, *, tokens, **options):
    """Return the outputs of all tokens, divided by the norm's root as in ``residual_norm_step``."""
    generator = torch.Generator().manual_seed(1)
    outputs = []
    for token in range(tokens):
        projected = torch.randn(ROWS, INNER + CHANNELS + HEADS, generator=generator).to(device=device, dtype=dtype)
        position = (token - BEGINS).clamp(min=0).to(device)
        gated, squares = step(projected, weights, *memory, position, **options)
        assert gated.dtype == dtype
        outputs.append(gated.to(squares.dtype) * torch.rsqrt(squares.sum(dim=-1, keepdim=True) / INNER + 1e-5))
    return torch.stack(outputs)
