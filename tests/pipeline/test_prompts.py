"""Prompts in place of classes: in every method of a pipeline, in files, and on the command line."""

import json

import pytest
import torch
from PIL import Image

from aimamba import ModelCard, Pipeline, Prompt, SamplingConfig
from aimamba.cli import main
from aimamba.data.png_text import read_png_text
from aimamba.data.vocabulary import Vocabulary
from aimamba.errors import CheckpointError, ConfigError
from aimamba.models.text import TextConfig
from refusals import one_line_error

NAMES = ("planets", "sprouts", "robots", "shells", "cats")
GUIDED = SamplingConfig(cfg_scale=2.0, seed=3)
TENSOR = {"output_type": "tensor"}
ROCKET, CAT = "a red rocket", "a black cat, flat design"


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train([ROCKET, CAT, "two green trees"], 280)


@pytest.fixture(scope="module")
def pipeline(make_aim, make_vq, vocabulary):
    text = TextConfig(tokens=12, vocabulary=len(vocabulary), width=32, blocks=1)
    return Pipeline(make_vq(), make_aim(text=text), NAMES, vocabulary)


@pytest.fixture(scope="module")
def classes_alone(make_aim, make_vq):
    return Pipeline(make_vq(), make_aim(), NAMES)


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts") / "model"
    pipeline.save_pretrained(folder)
    return folder


def test_with_classes_each_prompt_is_drawn_in_each(pipeline):
    drawn = pipeline(["cats", "shells"], 1, GUIDED, prompts=[ROCKET, CAT], **TENSOR)
    each = [Prompt(text, label) for text in (ROCKET, CAT) for label in ("cats", "shells")]
    assert torch.equal(drawn, pipeline(each, 1, GUIDED, **TENSOR))
    with one_line_error(ConfigError, "beside classes"):
        pipeline([Prompt(ROCKET)], prompts=[CAT])


def test_each_image_is_its_own(pipeline):
    drawn = pipeline(["cats", Prompt(ROCKET), Prompt(CAT)], 2, GUIDED, **TENSOR)
    assert len(drawn) == 6
    assert torch.equal(drawn[2:4], pipeline(prompts=ROCKET, n=2, config=GUIDED, **TENSOR))
    assert torch.equal(drawn[:2], pipeline(["cats"], 2, GUIDED, **TENSOR))
    assert torch.equal(drawn[4:5], pipeline([Prompt(CAT)], 1, GUIDED, **TENSOR))
    assert not torch.equal(drawn[2:4], drawn[4:6])


def test_a_prompt_and_a_class_together_differ_from_either(pipeline):
    both, prompt, label = (pipeline.opening(given) for given in (Prompt(ROCKET, "cats"), Prompt(ROCKET), "cats"))
    assert not torch.equal(both, prompt)
    assert not torch.equal(both, label)
    null = pipeline.opening(None)
    assert torch.equal(pipeline.opening(Prompt("")), null)
    assert torch.equal(pipeline.opening(Prompt(" ")), null)
    assert torch.equal(pipeline.opening(Prompt(ROCKET, {"cats": 2.0})), both)


def test_capitals_and_spaces_do_not_count(pipeline):
    assert torch.equal(pipeline.opening(Prompt("A  RED rocket ")), pipeline.opening(Prompt(ROCKET)))


def test_negative_prompts(pipeline):
    guided = pipeline(prompts=[ROCKET], config=SamplingConfig(cfg_scale=3.0, negative=CAT), **TENSOR)
    assert not torch.equal(guided, pipeline(prompts=[ROCKET], config=SamplingConfig(cfg_scale=3.0), **TENSOR))
    # An empty one is the null class, and one's own makes guidance vanish.
    empty = pipeline(prompts=[ROCKET], config=SamplingConfig(cfg_scale=3.0, negative=""), **TENSOR)
    assert torch.equal(empty, pipeline(prompts=[ROCKET], config=SamplingConfig(cfg_scale=3.0), **TENSOR))
    own = pipeline(prompts=[ROCKET], config=SamplingConfig(cfg_scale=3.0, negative=ROCKET), **TENSOR)
    assert torch.equal(own, pipeline(prompts=[ROCKET], **TENSOR))
    digits = pipeline(prompts=[ROCKET], config=SamplingConfig(cfg_scale=3.0, negative="2"), **TENSOR)
    assert torch.equal(digits, pipeline(prompts=[ROCKET], config=SamplingConfig(cfg_scale=3.0, negative=2), **TENSOR))
    # A number is a class still, and images of one call may have different ones.
    configs = [SamplingConfig(cfg_scale=3.0, negative=negative) for negative in (CAT, 2, None)]
    mixed = pipeline(prompts=[ROCKET] * 3, config=configs, **TENSOR)
    for index, config in enumerate(configs):
        assert torch.equal(mixed[index], pipeline(prompts=[ROCKET], config=config, **TENSOR)[0])


def test_every_edit_takes_prompts(pipeline):
    image = pipeline(prompts=[ROCKET], config=GUIDED)[0]
    codes = pipeline.encode(image)
    completed = pipeline.complete(image, 1, Prompt(CAT), 2, GUIDED)
    assert torch.equal(pipeline.encode(completed[0]).shape and codes[:, :3], codes[:, :3])
    *_, found = pipeline.generate(pipeline.labels([Prompt(CAT)]), GUIDED, prefix=codes[:, :3])
    assert torch.equal(pipeline.decode(found), pipeline.complete(image, 1, Prompt(CAT), 1, GUIDED, **TENSOR))
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[1, 1] = True
    negative = SamplingConfig(cfg_scale=2.0, negative="a dog", seed=3)
    assert len(pipeline.inpaint(image, mask, Prompt(CAT), 2, negative, candidates=2)) == 2
    *_, last = pipeline.stream([Prompt(ROCKET)], 1, GUIDED, **TENSOR)
    assert torch.equal(last.images, pipeline(prompts=[ROCKET], config=GUIDED, **TENSOR))
    assert len(pipeline.vary(image, 4, 2, Prompt(ROCKET))) == 2


@pytest.mark.parametrize("path", ["linear", "sphere"])
def test_the_way_between_two_prompts_begins_and_ends_at_them(pipeline, path):
    strip = pipeline.interpolate(Prompt(ROCKET), Prompt(CAT), 4, GUIDED, path=path, **TENSOR)
    ends = pipeline.between(Prompt(ROCKET), Prompt(CAT), 4, path)[[0, -1]]
    assert torch.allclose(ends, pipeline.labels([Prompt(ROCKET), Prompt(CAT)]), atol=1e-5)
    assert len(strip) == 4
    assert len(pipeline.interpolate("cats", Prompt(CAT), 3, GUIDED, path=path)) == 3


def test_likelihoods_under_prompts(pipeline):
    images = pipeline(prompts=[ROCKET, CAT], config=GUIDED)
    score = pipeline.score(images, [Prompt(ROCKET), Prompt(CAT)])
    for index, text in enumerate([ROCKET, CAT]):
        alone = pipeline.score(images[index], Prompt(text))
        assert torch.equal(alone.maps[0], score.maps[index])
    chances = pipeline.classify(images, [Prompt(ROCKET), Prompt(CAT), "cats"])
    assert chances.shape == (2, 3)
    crossed = pipeline.score(images, [Prompt(CAT), Prompt(ROCKET)])
    assert torch.equal(chances[0, 0] > chances[0, 1], score.bits[0] < crossed.bits[0])
    with one_line_error(ConfigError, "nothing to choose from"):
        pipeline.classify(images, [])


def test_what_does_not_fit_is_refused(pipeline, classes_alone, vocabulary, make_vq, make_aim):
    with one_line_error(ConfigError, "classes and no prompts"):
        classes_alone(prompts=[ROCKET])
    with one_line_error(ConfigError, "no vocabulary"):
        Pipeline(make_vq(), make_aim(), NAMES, vocabulary)
    with one_line_error(ConfigError, "has 260"):
        Pipeline(make_vq(), pipeline.generator, NAMES, Vocabulary.train(["abc"], 260))
    with one_line_error(ConfigError, "vocabulary of this generator's captions is missing"):
        Pipeline(make_vq(), pipeline.generator, NAMES)(prompts=[ROCKET])
    with one_line_error(ConfigError, "at most 10,000 characters"):
        Prompt("x" * 10_001)
    assert Prompt.of_caption("x" * 10_001) == Prompt("x" * 10_000)
    assert Prompt.of_caption("caf\udce9") == Prompt("caf?"), "as the vocabulary reads it"
    with one_line_error(ConfigError, "class"):
        pipeline(["a red rocket"])


def test_a_saved_pipeline_reads_the_same_prompts(pipeline, saved):
    again = Pipeline.from_pretrained(saved)
    assert again.vocabulary == pipeline.vocabulary
    assert torch.equal(again(prompts=[CAT], config=GUIDED, **TENSOR), pipeline(prompts=[CAT], config=GUIDED, **TENSOR))


@pytest.mark.parametrize(("content", "named"), [(None, "cannot be read"), ("{}", "damaged"), ("[", "damaged")])
def test_a_missing_or_changed_vocabulary_is_found(saved, tmp_path, content, named):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    path = folder / "vocabulary.json"
    path.unlink() if content is None else path.write_text(content)
    with one_line_error(CheckpointError, named if content is not None else "vocabulary.json"):
        Pipeline.from_pretrained(folder)


def test_the_page_of_the_model_shows_prompts(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, card=ModelCard(name="me/words", samples=2, prompts=(ROCKET, CAT)))
    page = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in page
    assert f"pipeline(prompts=[{ROCKET!r}], n=4" in page
    assert (tmp_path / "samples.png").stat().st_size > 0


def test_the_command_line(pipeline, saved, tmp_path, capsys):
    out = tmp_path / "drawn"
    run = ["sample", "--model", str(saved), "--out", str(out), "-n", "2", "--cfg-scale", "2", "--negative", "a dog"]
    assert main([*run, "--prompt", ROCKET, "--prompt", CAT]) == 0
    files = sorted(path.name for path in out.glob("*-seed*.png"))
    assert len(files) == 4
    record = json.loads(read_png_text(out / files[-1]))
    assert (record["prompt"], record["label"], record["class_name"]) == (ROCKET, 5, "")
    [expected] = pipeline(prompts=[ROCKET], config=SamplingConfig(cfg_scale=2.0, negative="a dog", seed=1))
    assert Image.open(out / files[-1]).tobytes() == expected.tobytes()
    again = tmp_path / "again"
    assert main(["sample", "--like", str(out / files[-1]), "--out", str(again)]) == 0
    assert (again / files[-1]).read_bytes() == (out / files[-1]).read_bytes()
    assert main([*run, "--prompt", ROCKET, "--classes", "cats,planets"]) == 0
    assert len(list(out.glob("*-seed*.png"))) == 8
    capsys.readouterr()


def test_commands_that_edit(pipeline, saved, tmp_path, capsys):
    image, model = tmp_path / "image.png", ["--model", str(saved), "--cfg-scale", "2"]
    given = pipeline(prompts=[ROCKET], config=GUIDED)[0]
    given.save(image)
    out = tmp_path / "out"
    where = ["--out", str(out), "-n", "1", *model]
    assert main(["complete", str(image), "--keep-rows", "1", "--prompt", CAT, "--class", "cats", *where]) == 0
    [expected] = pipeline.complete(given, 1, Prompt(CAT, "cats"), 1, SamplingConfig(cfg_scale=2.0))
    assert Image.open(out / "image-seed0.png").tobytes() == expected.tobytes()
    record = json.loads(read_png_text(out / "image-seed0.png"))
    assert (record["prompt"], record["class_name"], record["edit"]["command"]) == (CAT, "cats", "complete")
    mask = tmp_path / "mask.png"
    Image.new("L", given.size, 255).save(mask)
    assert main(["inpaint", str(image), "--mask", str(mask), "--prompt", CAT, "--candidates", "2", *where]) == 0
    assert json.loads(read_png_text(out / "image-seed0.png"))["label"] == 5
    assert main(["interpolate", ROCKET, CAT, "--prompts", "--steps", "3", *where]) == 0
    strip = pipeline.interpolate(Prompt(ROCKET), Prompt(CAT), 3, SamplingConfig(cfg_scale=2.0))
    [middle] = out.glob("*-seed0-step1.png")
    assert Image.open(middle).tobytes() == strip[1].tobytes()
    assert json.loads(read_png_text(middle))["edit"]["classes"] == [ROCKET, CAT]
    scores = tmp_path / "scores.json"
    folder = tmp_path / "images"
    folder.mkdir()
    given.save(folder / "one.png")
    assert main(["score", str(folder), "--prompt", ROCKET, "--json", str(scores), *model[:2]]) == 0
    [found] = json.loads(scores.read_text())["scores"]
    assert found["prompt"] == ROCKET
    assert found["bits"] == pytest.approx(float(pipeline.score(given, Prompt(ROCKET)).bits[0]), rel=1e-5)
    assert main(["score", str(folder), "--captions", *model[:2]]) == 2
    assert "no captions" in capsys.readouterr().err
    (folder / "one.txt").write_text(CAT)
    assert main(["score", str(folder), "--captions", "--json", str(scores), *model[:2]]) == 0
    assert json.loads(scores.read_text())["scores"][0]["prompt"] == CAT
    assert main(["info", str(saved)]) == 0
    assert "draw with --prompt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompt", ROCKET, "--prompt", ROCKET], "same text twice"),
        (["--prompt", "x" * 20_000], "at most 10,000"),
        (["--prompt", "caf\udce9"], "a prompt must be valid UTF-8, got 'caf\\udce9'"),
        (["--prompt", ROCKET, "--negative", "caf\udce9", "--cfg-scale", "2"], "negative must be valid UTF-8"),
        (["--prompt", ROCKET, "--npz", "x.npz"], "leave --prompt out"),
        (["--prompt", ROCKET, "--model", "avatars-64"], "trained on captions"),
    ],
)
def test_the_command_line_refuses(saved, tmp_path, capsys, arguments, named):
    model = [] if "--model" in arguments else ["--model", str(saved)]
    assert main(["sample", *model, "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
