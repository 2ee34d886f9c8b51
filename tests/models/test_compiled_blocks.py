"""What ``fit.compile = "blocks"`` gives the compiler: two graphs for all blocks, with our operators in them."""

import json
import subprocess
import sys

# In a process of its own: the compiler cannot see through the checks of shapes that the tests add to every function.
PROGRAM = """
import json
import torch
from torch._dynamo.utils import counters
from aimamba.models import AiM, AiMConfig
from aimamba.ops.mixer.native.sequence import unsupported
from aimamba.train.generator import code_cross_entropy

def compiler(graph, _):
    graphs.append([str(node.target) for node in graph.graph.nodes])
    return graph.forward

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


def test_the_first_block_is_a_graph_and_all_others_are_one():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["breaks"] == 0
    for graphs in found["graphs"].values():
        assert len(graphs) == 2
        if found["kernel"]:
            assert [sum("mixer_sequence" in target for target in targets) for targets in graphs] == [1, 1]
