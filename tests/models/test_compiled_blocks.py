"""What ``fit.compile = "blocks"`` gives the compiler: two graphs for all blocks, with our operators in them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

# In a process of its own: the compiler cannot see through the checks of shapes that the tests add to every function.
PROGRAM = """
import json
import sys
import torch
from torch._dynamo.utils import counters
from aimamba.models import AiM, AiMConfig
from aimamba.ops.mixer.native.sequence import unsupported
from aimamba.train.generator import code_cross_entropy

def compiler(graph, _):
    graphs.append([str(node.target) for node in graph.graph.nodes])
    return graph.forward

if sys.argv[1] == "cuda":  # take the kernels for CUDA, which Triton interprets
    from aimamba.ops.mixer import dispatch
    from aimamba.ops.norm import modulated
    dispatch._triton_applies = lambda *_: True
    modulated.kernels_apply = lambda *_: True

found = {}
for adaln in ("block", "group"):
    torch._dynamo.reset()
    graphs = []
    model = AiM(AiMConfig(width=64, head_width=32, state_size=16, num_blocks=4, num_tokens=16, chunk_size=8,
                          vocab_size=24, num_classes=5, adaln=adaln)).train()
    for block in model.blocks:
        block.compile(dynamic=False, backend=compiler)
    codes, labels = torch.randint(24, (2, 16)), torch.tensor([1, 3])
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = code_cross_entropy(model, codes, labels)
        loss.backward()
        model.zero_grad()
    found[adaln] = graphs
mixer = model.blocks[0].mixer
kernel = unsupported(mixer.in_proj(torch.zeros(2, 16, 64)), mixer.mixer_weights, 16) is None
print(json.dumps({"graphs": found, "breaks": len(counters["graph_break"]), "kernel": kernel}))
"""


def compiled(device, **environment):
    command = [sys.executable, "-c", PROGRAM, device]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["breaks"] == 0
    for graphs in found["graphs"].values():
        assert len(graphs) == 2, "the first block, which adds nothing, and all others"
    return found


def test_two_graphs_with_the_operator_of_the_cpu():
    found = compiled("cpu")
    for graphs in found["graphs"].values():
        if found["kernel"]:
            assert [sum("mixer_sequence" in target for target in targets) for targets in graphs] == [1, 1]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_two_graphs_with_the_operators_of_cuda():
    found = compiled("cuda", TRITON_INTERPRET="1")
    for graphs in found["graphs"].values():
        for targets in graphs:
            ours = [target for target in targets if "aimamba" in target]
            assert [target.split(".")[1] for target in ours] == ["residual_modulated_norm", "mixer_sequence_triton"]
            assert len(targets) < 40
