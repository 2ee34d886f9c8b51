"""A generator that learns from captions: batches, what is left out, vocabulary, and starting from one without."""

import math

import numpy as np
import pytest
import torch

from aimamba import documents
from aimamba.data.codes import CaptionedBatch, CodeSet
from aimamba.data.vocabulary import Vocabulary
from aimamba.errors import CheckpointError, ConfigError
from aimamba.generation import SamplingConfig
from aimamba.models.text import TextConfig
from aimamba.pipeline import Pipeline, Prompt
from aimamba.train.fit import FitConfig, fit
from aimamba.train.generator import GeneratorTask
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.reading import Reading
from aimamba.train.toml import to_toml
from aimamba.train.tuning import with_captions
from refusals import one_line_error
from sentence_files import write_encoder

NAMES = ("thumbs", "clay", "moons", "cats", "dogs")
WORDS = ("red", "green", "blue", "tall", "round", "with a hat")
TEXT = {"tokens": 8, "width": 32, "blocks": 1}


def captions(count):
    """The image's number in words, short and long; one image has none."""
    texts = [(f"a {WORDS[i % 6]} thing", f"{WORDS[i % 6]} thing, {WORDS[i // 6]}") for i in range(count)]
    return [*texts[:-1], ()]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train([one for each in captions(12) for one in each], 300)


@pytest.fixture
def make(make_aim, make_vq, vocabulary):
    def make(**config):
        generator = np.random.default_rng(0)
        sets = [
            CodeSet(
                generator.integers(0, 24, (count, 1, 9)).astype(np.uint16),
                generator.integers(0, 5, count),
                captions=captions(count),
            )
            for count in (12, 6)
        ]
        model = make_aim(text=TextConfig(**TEXT, vocabulary=len(vocabulary)))
        settings = GeneratorTaskConfig(tokenizer="vq", **config)
        return GeneratorTask(model, make_vq(), *sets, NAMES, settings, vocabulary, seed=3)

    return make


def test_batches_hold_one_caption_of_each_image(make, vocabulary):
    task = make()
    stream = task.batches(0, 4)
    seen = {}
    for step in range(30):
        batch = next(stream)
        assert isinstance(batch, CaptionedBatch)
        assert batch.captions.shape == (4, 8)
        again = next(task.batches(4 * step, 4))
        assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
        for row, example in enumerate(task.examples(4 * step, 4)):
            seen.setdefault(example.index, set()).add(vocabulary.decode(batch.captions[row].numpy()))
            assert torch.equal(batch.codes[row], task.train.take([example.index], [0])[0])
    assert {index: {vocabulary.decode(vocabulary.encode([text], 8).ids[0]) for text in texts} or {""}
            for index, texts in enumerate(task.train.captions)} == seen  # fmt: skip
    # Ranks that share a batch read other rows of it.
    whole, part = next(task.batches(0, 4)), next(task.batches(2, 2, stride=4))
    assert torch.equal(whole.captions[2:], part.captions)


def test_what_is_left_out(make, rng):
    """By the shares of rows, which the inputs of the model show."""
    task = make(label_dropout=0.25, class_dropout=0.5, caption_dropout=0.2)
    count, seen = 4000, {}
    batch = CaptionedBatch(
        torch.zeros(count, 9, dtype=torch.long),
        torch.full((count,), 2),
        torch.ones(count, 8, dtype=torch.long),
    )

    def forward(codes, labels, captions, **options):
        seen.update(labels=labels, captions=captions)
        return torch.zeros(count, 9, 16)

    task.model.forward = forward
    task.loss(task.model, batch, rng())
    bare, mute = seen["labels"] == 5, (seen["captions"] == 0).all(dim=1)
    assert not (seen["captions"] == 0).any(dim=1)[~mute].any()
    shares = [float(each.float().mean()) for each in (bare & mute, bare, mute)]
    # Both are left out together, or each for itself.
    expected = [0.25 + 0.75 * 0.1, 0.25 + 0.75 * 0.5, 0.25 + 0.75 * 0.2]
    assert shares == pytest.approx(expected, abs=0.03)


def test_noise_replaces_codes_that_are_read_and_none_that_is_predicted(make, rng):
    task, seen = make(code_noise=0.3, label_dropout=0.0), {}
    codes = torch.full((2000, 9), 7)
    batch = CaptionedBatch(codes, torch.zeros(2000, dtype=torch.long), torch.ones(2000, 8, dtype=torch.long))

    def forward(read, *rest, **options):
        seen["read"] = read
        return torch.zeros(2000, 9, 16)

    task.model.forward = forward
    loss, _ = task.loss(task.model, batch, rng())
    changed = seen["read"] != 7
    assert float(changed.float().mean()) == pytest.approx(0.3 * 23 / 24, abs=0.02)
    assert len(seen["read"][changed].unique()) == 23
    assert (codes == 7).all()
    assert loss.item() == pytest.approx(math.log(24), rel=1e-4)  # of hidden features that are all zero
    quiet = make(label_dropout=0.0)
    quiet.model.forward = forward
    quiet.loss(quiet.model, batch, rng())
    assert (seen["read"] == 7).all()


def test_held_out_bits_are_those_given_class_and_first_caption(make):
    task = make()
    with torch.no_grad():
        openings = torch.stack(
            [
                task.pipeline(task.model).opening(Prompt(task.held_out.caption(i), int(task.held_out.labels[i])))
                for i in range(6)
            ]
        )
        codes = task.held_out.take(range(6), [0] * 6)
        logits = task.model(codes[:, :-1], openings).log_softmax(dim=-1)
    expected = -float(logits.gather(-1, codes[..., None]).mean()) / math.log(2)
    assert task.evaluate(task.model)["bits_per_token"] == pytest.approx(expected, rel=1e-5)


def test_it_learns_to_tell_captions_apart_and_saves_what_it_reads(make, tmp_path):
    """Codes follow from the first word alone, and the classes say nothing."""
    task = make(label_dropout=0.1)
    words = np.array([i % 6 for i in range(12)])
    task.train.shards = [np.repeat(3 * words[:, None, None], 9, axis=2).astype(np.uint16)]
    task.train.captions = [(f"a {WORDS[word]} thing",) for word in words]
    fit(task, FitConfig(steps=150, batch_size=12, lr=0.02, warmup_steps=5, log_every=50, evaluate_every=0), tmp_path)
    task.save(task.model.eval(), tmp_path / "saved")
    pipeline = Pipeline.from_pretrained(tmp_path / "saved")
    assert pipeline.vocabulary == task.vocabulary
    for word in (0, 3, 5):
        labels = pipeline.labels([Prompt(f"a {WORDS[word]} thing")])
        *_, codes = pipeline.generate(labels, SamplingConfig(temperature=0.0))
        assert codes.tolist() == [[3 * word] * 9]
    assert task.sheet(task.model).size[1] > 0


@pytest.mark.filterwarnings("ignore::aimamba.data.vocabulary.TruncatedCaptionWarning")
def test_captions_that_are_longer_than_a_prompt_are_drawn_too(make):
    task = make(sheet_pictures=1)
    task.held_out.captions = [["a red thing " * 1000]] * len(task.held_out)
    assert task.sheet(task.model).width > 0


def test_the_vocabulary_is_part_of_what_a_run_is_based_on(make):
    task = make()
    before = task.basis()
    task.vocabulary = Vocabulary.train(["something else"], 280)
    assert {name for name, value in task.basis().items() if before[name] != value} == {"vocabulary of the captions"}


def test_a_frozen_encoder_reads_in_place_of_a_vocabulary(make, make_aim, make_vq, tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))
    write_encoder(tmp_path / "bert")
    task, said = make(text_encoder=str(tmp_path / "bert")), []
    encoder = task.config.text_encoder
    reading = Reading(TextConfig(**TEXT), encoder, captioned=True, source="images").learn(task.train, said.append)
    assert len(said) == 1
    vectors = reading.readers[1]
    assert (reading.text.vocabulary, reading.text.features) == (0, vectors.encoder.width)
    model = make_aim(text=reading.text)
    sets = task.train, task.held_out
    frozen = GeneratorTask(model, make_vq(), *sets, NAMES, task.config, *reading.readers, seed=3)
    batch = next(frozen.batches(0, 4))
    assert batch.captions.shape == (4, 8, vectors.encoder.width)
    loss, _ = frozen.loss(model, batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert model.condition.text.words.weight.grad.abs().max() > 0
    assert frozen.basis()["sentence encoder"] == reading.text.encoder
    frozen.save(model.eval(), tmp_path / "saved")
    prompt = [Prompt("a green thing")]
    expected = frozen.pipeline(model).labels(prompt)
    again = Pipeline.from_pretrained(tmp_path / "saved", text_encoder=tmp_path / "bert")
    assert torch.equal(again.labels(prompt), expected)
    write_encoder(tmp_path / "other", seed=1)
    with one_line_error(CheckpointError, "another sentence encoder"):
        Pipeline.from_pretrained(tmp_path / "saved", text_encoder=tmp_path / "other").labels(prompt)


def test_what_cannot_be_read_is_refused():
    with one_line_error(ConfigError, "photos has none"):
        Reading(TextConfig(), "", captioned=False, source="photos")
    with one_line_error(ConfigError, "takes none"):
        Reading(None, "minilm", captioned=True, source="photos")
    with one_line_error(ConfigError, "task.text_encoder"):
        Reading(TextConfig(vocabulary=0, features=4), "", captioned=True, source="photos")


@torch.no_grad()
def test_a_class_generator_learns_to_read_from_where_it_is(make_aim):
    given = make_aim()
    model = with_captions(given, TextConfig(**TEXT, vocabulary=50), seed=1)
    weights = dict(model.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in given.named_parameters())
    assert all(name.startswith("condition.text.") for name in weights.keys() - dict(given.named_parameters()).keys())
    assert all(bool(value.isfinite().all()) for value in weights.values())
    again = with_captions(given, TextConfig(**TEXT, vocabulary=50), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", ["label_dropout", "class_dropout", "caption_dropout", "code_noise"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_impossible_shares_are_refused(name, value):
    with one_line_error(ConfigError, f"task.{name}"):
        GeneratorTaskConfig(tokenizer="vq", **{name: value})


def test_recipes_with_tables_in_tables_go_round():
    values = {"a": 1, "model": {"b": [1, 2], "text": {"tokens": 4, "x y": {"z": "1"}}, "c": 2.5}, "empty": {}}
    assert documents.parse_toml(to_toml(values)) == values
