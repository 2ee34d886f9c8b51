"""What an 8-bit cache changes: ``python -m benchmarks.cache_quality`` compares logits of the packaged weights.

Samples one image of every class in float32, and decodes its codes again with the cache in 8 bits, with weights in
bfloat16, and with both. Needs no GPU: the steps are in plain PyTorch.

Shape letters: B images, L tokens, V vocabulary.
"""

import argparse
import math
from typing import Literal

import torch
from torch import Tensor

from aimamba import AiM, Pipeline
from aimamba.generation import SamplingConfig, generate
from aimamba.generation.engines.recorded_step import RecordedStep


@torch.no_grad()
def logits(model: AiM, inputs: Tensor, cache: Literal["model", "int8"]) -> Tensor:
    """Return the logits (B, L, V) of a class and the codes after it (B, L), one step after the other."""
    step = RecordedStep(model, form="dual", cache=cache)
    memory, found = step.new_memory(len(inputs)), []
    step.begin(inputs[:, 0], memory)
    for position, token in enumerate(inputs.unbind(1)):
        found.append(step(token, memory, places=step.places(position)))
        memory["position"].add_(1)
    return torch.stack(found, dim=1).double()


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    exact, narrow = (Pipeline.from_pretrained("avatars-64").generator.eval() for _ in range(2))
    narrow.cast(torch.bfloat16)
    labels = torch.arange(exact.config.num_classes)
    *_, codes = generate(exact, labels, SamplingConfig(seed=seed))
    inputs = torch.cat([labels[:, None], codes[:, :-1]], dim=1)
    expected = logits(exact, inputs, "model")
    wanted = expected.log_softmax(dim=-1)
    for name, model, cache in (("8-bit cache", exact, "int8"), ("bfloat16", narrow, "model"), ("both", narrow, "int8")):
        found = logits(model, inputs, "int8" if cache == "int8" else "model")
        deviation = float((found - expected).square().mean().sqrt() / expected.std())
        divergence = float((wanted.exp() * (wanted - found.log_softmax(dim=-1))).sum(dim=-1).mean()) / math.log(2)
        same = float((found.argmax(dim=-1) == expected.argmax(dim=-1)).double().mean())
        print(
            f"{name:<12} {deviation:.2%} of the logits' deviation, {divergence:.1e} bits a token, {same:.1%} same first"
        )


if __name__ == "__main__":
    main()
