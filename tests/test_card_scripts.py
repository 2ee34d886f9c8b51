"""Scripts of the cards in docs/models."""

import importlib.util
import math
from pathlib import Path

import torch
from torch.testing import assert_close

from aimamba import Pipeline

FOLDER = Path(__file__).parent.parent / "docs/models"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def test_codes_that_are_split_mean_what_they_meant(make_vq, make_aim):
    split, vq = script("split_codes"), make_vq()
    aim = make_aim(vocab_size=vq.config.codebook_size, num_tokens=9)
    tokenizer = split.split_tokenizer(vq, 3)
    generator = split.split_generator(aim, 3, tokenizer)
    assert tokenizer.config.codebook_size == generator.config.vocab_size == 3 * vq.config.codebook_size
    assert generator.config.tokenizer == tokenizer.code_fingerprint() != vq.code_fingerprint()

    codes = torch.randint(tokenizer.config.codebook_size, (2, 9), generator=torch.Generator().manual_seed(0))
    grid = codes.view(2, 3, 3)
    assert_close(tokenizer.decode(grid), vq.decode(grid // 3), rtol=0, atol=0.2)
    assert not torch.equal(tokenizer.decode(grid), vq.decode(grid // 3))
    assert_close(tokenizer.codebook.norm(dim=1), torch.ones(len(tokenizer.codebook)))

    labels = torch.tensor([0, 1])
    before, after = (
        model.eval()(of[:, :-1], labels).log_softmax(dim=-1) for model, of in ((aim, codes // 3), (generator, codes))
    )
    assert_close(after, before.repeat_interleave(3, dim=-1) - math.log(3))


@torch.no_grad()
def test_what_is_packed_is_rounded_and_belongs_together(make_vq, make_aim, tmp_path):
    pack, vq = script("pack"), make_vq()
    tokenizer = pack.rounded_tokenizer(vq)
    generator = pack.rounded_generator(make_aim(num_tokens=9, vocab_size=vq.config.codebook_size), tokenizer)
    assert {weight.dtype for weight in tokenizer.state_dict().values()} == {torch.float16}
    assert generator.word_embedding.weight.dtype == torch.float16
    assert {weight.dtype for weight in vq.state_dict().values()} == {torch.float32}
    assert generator.config.tokenizer == tokenizer.code_fingerprint() != vq.code_fingerprint()
    Pipeline(tokenizer, generator).save_pretrained(tmp_path / "packed")
    found = Pipeline.from_pretrained(tmp_path / "packed")
    assert found.generator.config.tokenizer == found.tokenizer.code_fingerprint()
    for name, weight in found.tokenizer.state_dict().items():
        assert_close(weight, vq.state_dict()[name].half().float(), rtol=0, atol=0)
