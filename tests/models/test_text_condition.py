"""Captions as a condition: steps against the parallel form, padding, the unconditional case, every engine."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig, generate, make_engine
from aimamba.generation.batch import Batch, Job
from aimamba.generation.engines.recorded import RecordedEngine
from aimamba.generation.engines.recorded_step import RecordedStep
from aimamba.generation.inpainting import inpaint
from aimamba.models import AiM, AiMConfig
from aimamba.models.aim import BEGUN
from aimamba.models.bounds import count_generator
from aimamba.models.text import TextConfig, TextEncoder, runs_of
from refusals import one_line_error
from tests.decoding import Recorder

TOKENS, LENGTH = 5, 9
TEXTS = {
    "both": {"vocabulary": 20},
    "prefix": {"vocabulary": 20, "reach": "prefix"},
    "adaln": {"vocabulary": 20, "reach": "adaln"},
    "frozen": {"vocabulary": 0, "features": 7},
    "no-blocks": {"vocabulary": 20, "blocks": 0},
    "ngrams": {"vocabulary": 20, "ngrams": 50},
}
LABELS = torch.tensor([5, 0, 3, 5, 1, 2])  # 5 is the null class


def text(**settings):
    return TextConfig(**({"tokens": TOKENS, "width": 32, "blocks": 1} | settings))


def captions(model, lengths=(0, 1, 2, 3, 4, TOKENS), seed=0):
    """Captions of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config.text
    there = torch.arange(TOKENS) < torch.tensor(lengths)[:, None]
    if config.features:
        found = torch.randn(len(lengths), TOKENS, config.features, generator=generator, dtype=model.dtype)
        return found * there[..., None]
    return torch.randint(1, config.vocabulary, (len(lengths), TOKENS), generator=generator) * there


def codes_of(model, count):
    return torch.randint(model.config.vocab_size, (count, LENGTH), generator=torch.Generator().manual_seed(7))


def made_engine(model, kind):
    return RecordedEngine(RecordedStep(model), Recorder()) if kind == "recorded" else make_engine(model, kind)


@torch.no_grad()
def decode(stepper, opening, codes):
    """Logits of every code, step by step, (B, L, V)."""
    state = stepper.init_state(len(codes))
    logits = [stepper.step(opening, state)]
    inputs = [torch.full((len(codes),), BEGUN)] * (opening.shape[1] - 1) + list(codes[:, :-1].unbind(1))
    logits += [stepper.step(one, state) for one in inputs]
    return torch.stack(logits[opening.shape[1] - 1 :], dim=1)


@pytest.fixture(scope="module", params=list(TEXTS))
def model(request, make_aim):
    return make_aim(dtype=torch.float64, text=text(**TEXTS[request.param]))


@pytest.fixture(scope="module")
def native_model(make_aim):
    return make_aim(width=16, head_width=16, state_size=16, text=text(vocabulary=20))


@torch.no_grad()
@pytest.mark.parametrize("mixer", [{}, {"state_size": 40}, {"mixer": "attention"}], ids=["state", "dual", "attention"])
@pytest.mark.parametrize("reach", ["both", "adaln"])
def test_steps_equal_the_parallel_form_for_captions_of_every_length(make_aim, mixer, reach):
    model = make_aim(dtype=torch.float64, text=text(vocabulary=20, reach=reach), **mixer)
    given, codes = captions(model), codes_of(model, len(LABELS))
    whole = model(codes[:, :-1], LABELS, given)
    opening = model.openings(LABELS, given)
    assert opening.shape == (6, 1 if reach == "adaln" else TOKENS + 1, 16)
    assert_close(decode(model, opening, codes), whole, rtol=1e-10, atol=1e-10)
    for known in range(LENGTH):
        assert_close(model(codes[:, :known], opening), whole[:, : known + 1], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_every_word_counts_and_padding_does_not(model):
    given, codes = captions(model), codes_of(model, 6)
    before = model(codes[:, :-1], LABELS, given)
    other = model(codes[:, :-1], LABELS, captions(model, seed=1))
    assert_close(other[0], before[0])  # without a token
    assert all((other[row] - before[row]).abs().max() > 1e-3 for row in range(1, 6))
    if isinstance(model.condition.text.words, torch.nn.Embedding):
        padding = model.condition.text.words.weight[0].clone()
        model.condition.text.words.weight[0] = 9.0
        assert_close(model(codes[:, :-1], LABELS, given), before)
        model.condition.text.words.weight[0] = padding


@torch.no_grad()
def test_a_caption_without_tokens_is_none_at_all(model):
    codes = codes_of(model, 2)
    nothing = model.condition.text.no_captions(2)
    labels = torch.tensor([5, 2])
    assert_close(model(codes[:, :-1], labels), model(codes[:, :-1], labels, nothing), rtol=0, atol=0)


@torch.no_grad()
def test_an_opening_does_not_depend_on_the_others(native_model):
    given = captions(native_model)
    together = native_model.openings(LABELS, given)
    for row in range(6):
        assert torch.equal(native_model.openings(LABELS[row : row + 1], given[row : row + 1])[0], together[row])


def test_every_parameter_is_trained_and_counted(model):
    codes = codes_of(model, 6)
    logits = model(codes[:, :-1], LABELS, captions(model))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    model.zero_grad(set_to_none=True)
    assert silent == set()
    assert count_generator(model.config) == model.num_parameters()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["native", "recorded"])
def test_engines_take_prefixes(native_model, kind):
    engine = made_engine(native_model, kind)
    opening, codes = native_model.openings(LABELS, captions(native_model)), codes_of(native_model, 6)
    assert_close(decode(engine, opening, codes), decode(native_model, opening, codes), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_native_engine_in_bfloat16(make_aim):
    wide = make_aim(width=16, head_width=16, state_size=16, text=text(vocabulary=20))
    opening, codes = wide.openings(LABELS, captions(wide)), codes_of(wide, 6)
    expected = decode(wide, opening, codes)
    found = decode(make_engine(wide.cast(torch.bfloat16), "native"), opening.bfloat16(), codes)
    assert (found - expected).abs().mean() < 0.05 * expected.std()


@pytest.mark.parametrize("kind", ["plain", "native", "recorded"])
def test_images_that_share_steps_are_those_generated_alone(native_model, kind):
    """They join one after the other, with captions, classes, negative captions and neither."""
    engine = (
        RecordedEngine(RecordedStep(native_model), Recorder())
        if kind == "recorded"
        else make_engine(native_model, kind)
    )
    with torch.no_grad():
        openings = native_model.openings(LABELS, captions(native_model))
        negatives = native_model.openings(LABELS, captions(native_model, seed=3))
    scales = (2.0, 1.0, 3.0, 1.5, 1.0, 2.5)
    configs = [SamplingConfig(seed=i, cfg_scale=scale) for i, scale in enumerate(scales)]
    jobs = [
        Job(
            label=int(LABELS[i]),
            config=configs[i],
            opening=None if i == 1 else openings[i],
            negative=negatives[i] if i % 2 else None,
        )
        for i in range(6)
    ]
    batch = Batch(native_model, engine, 6)
    found, waiting = {}, list(enumerate(jobs))
    images = {}
    for _ in range(60):
        if waiting:
            index, job = waiting.pop(0)
            images[batch.join(job)] = index
        for image in batch.step():
            found[images[image]] = image.codes.clone()
            batch.leave(image)
        if not waiting and not len(batch):
            break
    for i, job in enumerate(jobs):
        given = LABELS[i : i + 1] if job.opening is None else job.opening[None]
        negative = None if job.negative is None else job.negative[None]
        alone = list(generate(native_model, given, [job.config], negatives=negative, engine="plain"))[-1][0]
        assert found[i].tolist() == alone.tolist()


@torch.no_grad()
def test_a_negative_caption_takes_the_place_of_the_unconditional_row(native_model):
    opening = native_model.openings(LABELS, captions(native_model))
    config = SamplingConfig(cfg_scale=4.0)
    without = list(generate(native_model, opening, config))[-1]
    null = native_model.openings(torch.full((6,), 5))
    assert torch.equal(list(generate(native_model, opening, config, negatives=null))[-1], without)
    assert not torch.equal(list(generate(native_model, opening, config, negatives=opening.flip(0)))[-1], without)
    # With its own caption as the negative one, guidance has no effect.
    itself = list(generate(native_model, opening, config, negatives=opening))[-1]
    assert torch.equal(itself, list(generate(native_model, opening))[-1])


@torch.no_grad()
def test_inpainting_and_known_beginnings_take_captions(native_model):
    opening = native_model.openings(LABELS, captions(native_model))
    codes, config = codes_of(native_model, 6), SamplingConfig(cfg_scale=2.0)
    kept = list(generate(native_model, opening, config, prefix=codes[:, :4]))[-1]
    assert torch.equal(kept[:, :4], codes[:, :4])
    for start in (0, 3):
        mask = torch.zeros(6, LENGTH, dtype=torch.bool)
        mask[:, start : start + 3] = True
        found = list(inpaint(native_model, opening, config, codes=codes, mask=mask, candidates=3))[-1]
        assert torch.equal(found[~mask], codes[~mask])
        first = list(inpaint(native_model, opening, config, codes=codes, mask=mask, method="plain"))[-1]
        for row in range(6):
            alone = inpaint(
                native_model, opening[row : row + 1], config, codes=codes[row : row + 1], mask=mask[row : row + 1],
                seeds=[row], method="plain",
            )  # fmt: skip
            assert torch.equal(list(alone)[-1][0], first[row])


def test_what_does_not_fit_is_refused(model, make_aim):
    given = captions(model)
    with one_line_error(ConfigError, "takes captions as"):
        model.openings(LABELS, given[:, :3])
    with one_line_error(ConfigError, "openings of shape"):
        model.openings(torch.zeros(2, TOKENS + 3, 16))
    with one_line_error(ConfigError, "no captions"):
        make_aim().openings(LABELS, given)


def test_runs_are_those_of_one_two_and_three_tokens_without_padding():
    h = 1_000_003
    tokens = torch.tensor([[7, 2, 9, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    found = runs_of(tokens, 1 << 60)
    assert found.tolist() == [
        [7, 2, 9, -1, 7 * h + 2, 2 * h + 9, -1, (7 * h + 2) * h + 9, -1],
        [3, *[-1] * 8],
        [-1] * 9,
    ]
    assert torch.equal(runs_of(tokens, 100), torch.where(found < 0, found, found % 100))
    assert runs_of(tokens[:, :1], 100).tolist() == [[7], [3], [-1]]


@torch.no_grad()
def test_the_vector_adds_up_what_the_words_and_phrases_of_a_caption_have_in_the_table(make_aim):
    model = make_aim(dtype=torch.float64, text=text(vocabulary=20, ngrams=50))
    encoder, given = model.condition.text, captions(model)
    with_table, _ = encoder(given)
    table = encoder.ngrams.weight.clone()
    encoder.ngrams.weight.zero_()
    without, _ = encoder(given)
    expected = [table[[row for row in rows if row >= 0]].sum(dim=0) for rows in runs_of(given, 50).tolist()]
    assert_close(with_table - without, torch.stack(expected))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tokens": 33}, "text.tokens"),
        ({"tokens": 0}, "text.tokens"),
        ({"width": 40}, "multiple of 32"),
        ({"features": 4}, "either a vocabulary"),
        ({"vocabulary": 0}, "either a vocabulary"),
        ({"vocabulary": 1 << 20}, "text.vocabulary"),
        ({"blocks": -1}, "text.blocks"),
        ({"ngrams": -1}, "text.ngrams"),
        ({"ngrams": 8, "reach": "prefix"}, "text.ngrams"),
        ({"ngrams": 8, "vocabulary": 0, "features": 4}, "text.ngrams"),
    ],
)
def test_impossible_shapes_are_refused(settings, named):
    with one_line_error(ConfigError, named):
        text(**settings)


def test_rope_and_captions_exclude_each_other():
    with one_line_error(ConfigError, "rope"):
        AiMConfig(mixer="attention", positions="rope", text=text())


def test_a_saved_model_takes_the_same_captions(native_model, tmp_path):
    native_model.save_pretrained(tmp_path)
    again = AiM.from_pretrained(tmp_path)
    assert again.config == native_model.config
    given, codes = captions(native_model), codes_of(native_model, 6)
    with torch.no_grad():
        assert torch.equal(again(codes[:, :-1], LABELS, given), native_model(codes[:, :-1], LABELS, given))


def test_a_new_encoder_tells_words_apart():
    encoder = TextEncoder(TextConfig(tokens=8, vocabulary=64, width=128), 96)
    encoder.init_weights(torch.Generator().manual_seed(0))
    vectors, prefixes = encoder(torch.tensor([[5, 6, 7, 8, 9, 10, 0, 0], [5, 6, 20, 8, 9, 10, 0, 0]]))
    assert torch.cosine_similarity(prefixes[0, 2], prefixes[1, 2], dim=0) < 0.5
    assert torch.cosine_similarity(prefixes[0, 1], prefixes[1, 1], dim=0) > 0.9
    assert torch.cosine_similarity(vectors[0], vectors[1], dim=0) < 0.95
