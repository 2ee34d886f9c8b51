"""Completions, variations, inpainting, interpolation, previews, and settings of each image."""

import numpy as np
import pytest
import torch

from aimamba.errors import ConfigError, DataError
from aimamba.generation import SamplingConfig, generate
from aimamba.pipeline import Pipeline
from aimamba.pipeline.drawing import whole
from refusals import one_line_error

NAMES = ("planets", "sprouts", "Robots", "sea shells", "cats")
GUIDED = SamplingConfig(cfg_scale=2.0, seed=3)
TENSOR = {"output_type": "tensor"}


@pytest.fixture(scope="module")
def pipeline(make_aim, make_vq):
    return Pipeline(make_vq(), make_aim(), NAMES)


@pytest.fixture(scope="module")
def images(pipeline):
    return pipeline(["planets", "cats"], 1, GUIDED)


@pytest.fixture(scope="module")
def codes(pipeline, images):
    return pipeline.encode(images)


def drawn(pipeline, codes, labels, config, **options):
    *_, found = generate(pipeline.generator, torch.as_tensor(labels), config, **options)
    return pipeline.decode(found)


def test_codes_go_round(pipeline, images, codes):
    assert codes.shape == (2, 9)
    assert codes.dtype == torch.int64
    pixels = np.stack([np.asarray(image) for image in images])
    assert torch.equal(pipeline.encode(pixels), codes)
    expected = pipeline.tokenizer.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert torch.equal(codes, expected.flatten(1))
    assert torch.equal(pipeline.encode(images[1]), codes[1:])
    decoded = pipeline.decode(codes)
    assert torch.equal(pipeline.decode(expected), decoded)
    for prefix in (codes[:, :6], expected[:, :2]):
        *_, found = pipeline.generate(torch.tensor([0, 1]), GUIDED, prefix=prefix)
        assert torch.equal(found[:, :6], codes[:, :6])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (torch.zeros(2, 8, dtype=torch.long), "expected the 9 codes of whole images, got 8"),
        (torch.zeros(9, dtype=torch.long), "codes of shape (9,) does not fit"),
        (torch.zeros(2, 9), "must hold codes, which are whole numbers, got torch.float32"),
        (torch.full((1, 9), 24), "codes outside 0 to 23"),
    ],
)
def test_codes_that_do_not_fit(pipeline, wrong, named):
    with one_line_error(DataError) as caught:
        pipeline.decode(wrong)
    assert named in str(caught.value)


def test_the_generator_refuses_a_whole_image(pipeline, codes):
    with one_line_error(ConfigError, match=r"takes 8 of them at most, got 9; leave out the last: codes\[:, :-1\]"):
        pipeline.generator(codes, torch.tensor([0, 1]))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_completions_keep_the_top(pipeline, images, codes, batch_size):
    found = pipeline.complete(images, 2, ["planets", 4], 2, GUIDED, batch_size=batch_size, **TENSOR)
    expected = drawn(
        pipeline, codes, [0, 0, 4, 4], GUIDED, seeds=[3, 4, 3, 4], prefix=codes[:, :6].repeat_interleave(2, dim=0)
    )
    assert torch.equal(found, expected)
    assert torch.equal(pipeline.complete(images[1], 2, 4, config=GUIDED, **TENSOR), expected[2:3])


def test_the_class_is_the_likeliest_of_what_is_kept(pipeline, images, codes):
    kept = pipeline.first_tokens(6).expand(2, -1)
    likely = pipeline.log_likelihoods(codes, kept).argmax(dim=1)
    given = pipeline.complete(images, 2, likely.tolist(), **TENSOR)
    assert torch.equal(pipeline.complete(images, 2, **TENSOR), given)
    changed = codes.clone()
    changed[:, 6:] = 0
    assert torch.equal(pipeline.guess(changed, None, kept), likely)


def test_variations_share_the_first_tokens(pipeline, images, codes):
    found = pipeline.vary(images[0], 4, 3, "planets", GUIDED, **TENSOR)
    expected = drawn(pipeline, codes, [0] * 3, GUIDED, prefix=codes[:1, :4])
    assert torch.equal(found, expected)
    anew = pipeline.vary(images[0], 0, 2, "planets", GUIDED, output_type="numpy")
    assert anew.shape == (2, 6, 6, 3)
    assert [image.tobytes() for image in pipeline(["planets"], 2, GUIDED)] == [image.tobytes() for image in anew]


def test_inpainting_keeps_what_is_not_masked(pipeline, images, codes):
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[1, 1] = True
    found = pipeline.inpaint(images, mask, ["planets", "cats"], 2, GUIDED, candidates=3, **TENSOR)
    assert found.shape == (4, 3, 6, 6)
    alone = pipeline.inpaint(images[1], mask, "cats", 2, GUIDED, candidates=3, batch_size=1, **TENSOR)
    assert torch.equal(alone, found[2:])
    kept = pipeline.inpaint(images, mask, ["planets", "cats"], 2, GUIDED, candidates=3, keep_pixels=True, **TENSOR)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[2:4, 2:4] = True
    assert torch.equal(kept[:, :, inside], found[:, :, inside])
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    assert torch.equal(kept[:, :, ~inside], pixels.repeat_interleave(2, dim=0)[:, :, ~inside])


@pytest.mark.parametrize("path", ["linear", "sphere"])
def test_interpolation_ends_at_both_classes(pipeline, path):
    weights = pipeline.between("planets", "cats", 5, path)
    assert torch.allclose(weights[[0, -1]], torch.eye(5)[[0, 4]], atol=1e-7)
    vectors = pipeline.generator.condition(weights)
    ends = pipeline.generator.condition.table.weight[[0, 4]]
    if path == "linear":
        assert torch.allclose(vectors[2], ends.mean(dim=0), atol=1e-6)
    else:
        sides = torch.nn.functional.normalize(vectors, dim=1)
        angles = (sides[1:] * sides[:-1]).sum(dim=1)
        lengths = ends.norm(dim=1)
        assert lengths.min() * 0.9 < vectors[2].norm() < lengths.max() * 1.1
        assert (angles.max() - angles.min()) < 0.05
    images = pipeline.interpolate("planets", 4, 4, GUIDED, path=path, batch_size=3, **TENSOR)
    ends = pipeline.interpolate("planets", 4, 2, GUIDED, path=path, **TENSOR)
    assert torch.equal(images[[0, -1]], ends)
    assert torch.equal(ends[0], drawn(pipeline, None, [0], GUIDED, seeds=[3])[0])


def test_a_mixture_of_one_class_is_the_class(pipeline):
    expected = pipeline(["planets", "cats"], 2, GUIDED)
    found = pipeline([{"planets": 2.0}, "cats"], 2, GUIDED)
    assert [image.tobytes() for image in found] == [image.tobytes() for image in expected]
    half = pipeline([{"planets": 1, "cats": 1}], 2, GUIDED)
    again = pipeline([{4: 0.25, 0: 0.25}, "cats"], 2, GUIDED)[:2]
    assert [image.tobytes() for image in half] == [image.tobytes() for image in again]
    assert [image.tobytes() for image in half] != [image.tobytes() for image in expected[:2]]


@pytest.mark.parametrize("every", [1, 4, 100])
def test_previews_end_with_the_images(pipeline, every):
    previews = list(pipeline.stream(["planets", {"cats": 1}], 1, GUIDED, every=every))
    assert [each.tokens for each in previews] == [*range(every, 9, every), 9]
    assert {each.total for each in previews} == {9}
    expected = [image.tobytes() for image in pipeline(["planets", "cats"], 1, GUIDED)]
    assert [image.tobytes() for image in previews[-1].images] == expected


def test_previews_of_a_completion_begin_with_what_is_kept(pipeline, codes):
    previews = list(pipeline.stream(["planets", "cats"], config=GUIDED, prefix=codes[:, :5], every=2, **TENSOR))
    assert [each.tokens for each in previews] == [5, 7, 9]
    expected = drawn(pipeline, codes, [0, 4], GUIDED, seeds=[3, 3], prefix=codes[:, :5])
    assert torch.equal(previews[-1].images, expected)


def test_each_class_may_have_its_own_settings(pipeline):
    settings = [SamplingConfig(seed=9, top_k=3), {"cfg_scale": 3.0, "negative": "sprouts", "cfg_end": 0.5, "seed": 4}]
    together = pipeline(["planets", "cats"], 2, settings)
    for place, (name, config) in enumerate(zip(("planets", "cats"), settings, strict=True)):
        alone = pipeline([name], 2, config)
        assert [each.tobytes() for each in alone] == [each.tobytes() for each in together[2 * place :][:2]]


def test_scores_are_the_likelihoods(pipeline, images, codes):
    score = pipeline.score(images, ["planets", "cats"])
    with torch.no_grad():
        logits = pipeline.generator(codes[:, :-1], torch.tensor([0, 4])).double().log_softmax(dim=-1)
    expected = -logits.gather(-1, codes[..., None]).squeeze(-1) / np.log(2)
    assert torch.allclose(score.maps.flatten(1).double(), expected, atol=1e-4)
    assert torch.allclose(score.bits, score.maps.sum(dim=(1, 2)))
    assert torch.allclose(score.bits_per_token, score.bits / 9)
    assert torch.equal(pipeline.score(images[1], "cats").bits, score.bits[1:])
    assert not torch.allclose(pipeline.score(images).bits, score.bits)
    whole = pipeline.log_likelihoods(codes)
    assert torch.allclose(whole[[0, 1], [0, 4]].double(), -expected.sum(dim=1) * np.log(2), atol=1e-3)
    assert torch.equal(pipeline.classify(images), whole.softmax(dim=-1))


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda p, i: p.complete(i, 3), ConfigError, "keep_rows must be from 0 to 2 of 3 rows, got 3"),
        (lambda p, i: p.complete(i, 0), ConfigError, "nothing is kept that would tell the class"),
        (lambda p, i: p.complete(i, 1, "dogs"), ConfigError, "unknown class 'dogs'"),
        (lambda p, i: p.complete(i, 1, [0, 1, 2]), DataError, "got 3 classes for 2 images"),
        (lambda p, i: p.complete(i, 1, n=0), ConfigError, "n must be from 1 to 1,000,000, got 0"),
        (lambda p, i: p.complete(i, 1, batch_size=0), ConfigError, "batch size must be at least 1, got 0"),
        (lambda p, i: p.complete(i, 1, config=[GUIDED] * 3), ConfigError, "got 3 configs for 2"),
        (lambda p, i: p.complete(i, 1, config={"top": 1}), ConfigError, "unknown key 'top'"),
        (lambda p, i: p.complete(i, 1, n=10**12), ConfigError, "n must be from 1 to 1,000,000"),
        (lambda p, i: p.inpaint(i, torch.ones(3, 3)), ConfigError, "nothing is kept that would tell the class"),
        (lambda p, i: p.vary(i, 9), ConfigError, "from_token must be from 0 to 8, got 9"),
        (lambda p, i: p.inpaint(i, torch.zeros(3, 3)), DataError, "covers no token"),
        (lambda p, i: p.interpolate("cats", "planets", 1), ConfigError, "steps must be from 2, for both ends"),
        (lambda p, i: p.interpolate("cats", "planets", 10**11), ConfigError, "to 1,000,000, got 100000000000"),
        (lambda p, i: p.interpolate("cats", "planets", path="bent"), DataError, "path must be one of linear, sphere"),
        (lambda p, i: list(p.stream(["cats"], every=0)), ConfigError, "every must be at least 1 token, got 0"),
        (lambda p, i: p([{"cats": -1, "planets": 2}]), ConfigError, "weight of class 'cats' in a mixture must be"),
        (lambda p, i: p([{"cats": 0}]), ConfigError, "at least one class with a weight above 0"),
        (lambda p, i: p([{"cats": 1}], config={"negative": "x", "cfg_scale": 2}), ConfigError, "unknown class 'x'"),
        (lambda p, i: p.score(i, {"dogs": 1}), ConfigError, "unknown class 'dogs'"),
        (lambda p, i: p.generator.condition(torch.ones(1, 4)), ConfigError, "each of 5 classes"),
        (lambda p, i: p.generator.condition(torch.full((1, 5), torch.nan)), ConfigError, "finite numbers"),
    ],
)
def test_what_does_not_fit_is_refused(pipeline, images, call, error, named):
    with one_line_error(error) as caught:
        call(pipeline, images)
    assert named in str(caught.value)


@pytest.mark.parametrize("number", [2.5, "2", None, True])
def test_numbers_are_whole(number):
    with one_line_error(ConfigError, match="candidates must be a whole number"):
        whole("candidates", number)
