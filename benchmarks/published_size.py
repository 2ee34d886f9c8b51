"""Load and sample a published size with random weights: ``python benchmarks/published_size.py [aim-b]``.

Speed does not depend on the weights. Times are seconds; the picture has 256 codes, is guided, and includes the decoder.
"""

import resource
import sys
import tempfile
import time

import torch

from aimamba import AiM, Pipeline, SamplingConfig, VQModel
from aimamba.models import AIM_PRESETS, VQ_PRESETS

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "aim-b"
    with tempfile.TemporaryDirectory() as folder:
        Pipeline(VQModel(VQ_PRESETS["vq-f16"]), AiM(AIM_PRESETS[name])).save_pretrained(folder)
        start = time.perf_counter()
        pipeline = Pipeline.from_pretrained(folder)
        loaded = time.perf_counter() - start
        start = time.perf_counter()
        pipeline([0], config=SamplingConfig(cfg_scale=2.0))
        drawn = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name}, {torch.get_num_threads()} threads: loaded in {loaded:.1f} s, one picture in {drawn:.1f} s")
    print(f"peak memory {peak:.1f} GB")
