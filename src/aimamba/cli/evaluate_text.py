"""Measure whether the samples of a model show what captions say.

MODEL is a model that takes captions: a folder, a run or a hub id. SET is a set of real images with captions that it was
not trained on, see below: captioned-avatars, emoji, or a folder. Without a split, the named sets stand for all that
they hold out: new images of what is known, and new combinations or names. Captions are drawn in turn, and each sample
is compared with its caption and with real images. The same command continues one that was interrupted.

Prints for every set: bits a token of real images with the right caption, a wrong one and none; how often the right
caption of 100 is the likeliest for a real image, and the right real image of 100 the nearest to a sample; Fréchet and
kernel distance; and of captioned-avatars how often the samples have the attributes that are mentioned, one by one and
all of a caption at once, between what is read on real images with their captions and with those of others.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aimamba.cli.arguments import (
    Parser,
    add_engine,
    add_foreign_tokenizer,
    add_measuring,
    add_placement,
    add_sampling,
    add_sweep,
    batch_size_of,
    load_pipeline,
    sampling_of,
    scales_of,
)
from aimamba.cli.kept import kept_samples
from aimamba.data import spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aimamba.evaluation.kept_codes import KeptCodes
    from aimamba.generation import SamplingConfig
    from aimamba.pipeline import Prompt


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument("model", metavar="MODEL", help="the model: a folder, a run or a hub id")
    parser.add_argument("images", metavar="SET", help="set of real images with captions, see below")
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, if MODEL does not include one")
    parser.add_argument(
        "-n", type=int, default=2000, metavar="N", help="samples of each set at each guidance scale (default 2000)"
    )
    add_foreign_tokenizer(parser)
    add_sampling(parser, fitting=True)
    add_sweep(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the numbers over the guidance scale, as SVG")
    add_measuring(parser)
    add_placement(parser)
    add_engine(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, print and write."""
    import hashlib

    from aimamba.cli.output import output_file, print_line, print_table, require_apart, require_space, write_json
    from aimamba.devices import resolve_device
    from aimamba.evaluation.text import TextRequest, check_takes_captions, evaluate_text
    from aimamba.evaluation.text_metrics import figure
    from aimamba.files import cache_folder, write_atomically
    from aimamba.sharing import ALONE

    request = TextRequest(
        images=arguments.images,
        model=arguments.model,
        count=arguments.n,
        sampling=sampling_of(arguments, "evaluate-text"),
        sweep=scales_of(arguments.sweep),
        batch_size=1 if arguments.batch_size is None else arguments.batch_size,  # chosen when the model is known
        dtype=arguments.dtype,
        features=arguments.features,
        size=arguments.size,
    )
    names = request.set_names  # a wrong one is reported before the model is loaded
    file, plot = output_file("--json", arguments.json), output_file("--plot", arguments.plot, suffix=".svg")
    require_apart([("--json", file), ("--plot", plot)], spec.paths_of(names))
    device = resolve_device(arguments.device)
    pipeline = load_pipeline(arguments)
    check_takes_captions(pipeline, request.model)
    pipeline.prepare()
    size = batch_size_of(arguments, pipeline, request.count, ALONE, guided=set(request.scales) != {1.0})
    request = replace(request, batch_size=size)
    codes = 4 * request.count * pipeline.grid**2 * len(names) * len(request.scales)
    require_space(cache_folder(), codes, "keeping the samples' codes (AIMAMBA_CACHE)")
    record = pipeline.record(request.model)
    with kept_samples(record, f"captions of {request.images}", request.sampling, ALONE) as keep:

        def kept(prompts: "Sequence[Prompt]", config: "SamplingConfig") -> "KeptCodes | None":
            texts = "\0".join(prompt.text for prompt in prompts)
            return keep and keep(config, hashlib.sha256(texts.encode()).hexdigest()[:16])

        found = evaluate_text(request, pipeline, device=device, keep=kept, progress=True)
        write_json(file, found.to_dict())
        if plot is not None:
            drawn = figure(found.network, found.sets)
            write_atomically(plot, lambda draft: draft.write_text(drawn, encoding="utf-8"))
    print_table([row for each in found.sets for row in each.rows(found.network)])
    if plot is not None:
        print_line(f"plot: {plot}")
