"""From class names to images."""

import json
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from aimamba.data.imagenet import imagenet_class_names
from aimamba.errors import CheckpointError, ConfigError
from aimamba.generation import SamplingConfig, generate
from aimamba.pipeline import Pipeline, Prompt
from refusals import one_line_error

NAMES = ("planets", "sprouts", "Robots", "sea shells", "cats")
GUIDED = SamplingConfig(cfg_scale=2.0, top_p=0.95, seed=3)


@pytest.fixture
def pipeline(make_aim, make_vq):
    return Pipeline(make_vq(), make_aim(), NAMES)


def pixels(images):
    """Pixels of PIL images, (B, 3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def refusal(call, error=ConfigError):
    with one_line_error(error) as caught:
        call()
    return str(caught.value)


def test_images(pipeline):
    images = pipeline(["planets", 4], n=3, config=GUIDED)
    assert len(images) == 6
    assert pipeline.image_size == 6
    assert all(isinstance(image, Image.Image) for image in images)
    assert {image.size for image in images} == {(6, 6)}
    assert {image.mode for image in images} == {"RGB"}
    assert len({image.tobytes() for image in images}) == 6


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_images_do_not_depend_on_the_batch(pipeline, batch_size):
    whole = pipeline(NAMES[:3], n=3, config=GUIDED, batch_size=9)
    assert torch.equal(pixels(pipeline(NAMES[:3], n=3, config=GUIDED, batch_size=batch_size)), pixels(whole))


def test_images_come_label_by_label_with_seeds_counting_up(pipeline):
    images = pipeline([1, 2], n=2, config=GUIDED)
    *_, codes = generate(pipeline.generator, torch.tensor([1, 1, 2, 2]), GUIDED, seeds=[3, 4, 3, 4])
    assert torch.equal(pixels(images), pipeline.decode(codes))


def test_codes_are_laid_out_in_raster_order(pipeline):
    codes = torch.arange(9)[None]
    expected = pipeline.tokenizer.decode(codes.view(1, 3, 3)).detach()
    expected = (127.5 * expected + 128).clamp(0, 255).to(torch.uint8)
    decoded = pipeline.decode(codes)
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, expected)


def test_images_follow_the_tokenizers_weights(pipeline, make_vq):
    codes = torch.arange(9)[None]
    before = pipeline.decode(codes)
    decoder = pipeline._decoder
    assert torch.equal(pipeline.decode(codes), before)
    assert pipeline._decoder is decoder, "prepared once"
    other = make_vq(seed=1)
    pipeline.tokenizer.load_state_dict(other.state_dict())
    after = pipeline.decode(codes)
    assert not torch.equal(after, before)
    assert torch.equal(after, Pipeline(other, pipeline.generator).decode(codes))


def test_progress_is_reported_after_every_token(pipeline):
    seen = []
    pipeline(["cats", "planets", "sprouts"], batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2 * t, 27) for t in range(1, 10)] + [(18 + t, 27) for t in range(1, 10)]


def test_no_labels_no_images(pipeline):
    assert pipeline([]) == []


def test_labels_by_name_and_number(pipeline):
    for name, label in (("planets", 0), ("PLANETS", 0), (" robots ", 2), ("sea shells", 3), (4, 4), ("4", 4), (0, 0)):
        assert pipeline.label(name) == label
    assert [pipeline.class_name(label) for label in range(5)] == list(NAMES)


@pytest.mark.parametrize("name", ["planet", "plants", "Plannets"])
def test_an_unknown_class_suggests_the_nearest(pipeline, name):
    message = refusal(lambda: pipeline([name]))
    assert message.startswith(f"unknown class {name!r} (did you mean 'planets'")
    assert "a number from 0 to 4 or one of: planets, sprouts, Robots, sea shells, cats" in message


@pytest.mark.parametrize("name", [-1, 5, "5", "", "xyzzy", "1.0"])
def test_a_class_that_is_not_there(pipeline, name):
    assert f"unknown class {name!r}" in refusal(lambda: pipeline.label(name))


def test_classes_without_names(make_aim, make_vq):
    nameless = Pipeline(make_vq(), make_aim())
    assert nameless.class_names == ()
    assert nameless.label("3") == 3
    assert nameless.class_name(3) == "class-3"
    assert "have no names, expected 0 to 4" in refusal(lambda: nameless.label("cats"))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda pipeline: pipeline("planets"), "write ['planets']"),
        (lambda pipeline: pipeline(["planets"], n=0), "got n 0"),
        (lambda pipeline: pipeline(["planets"], batch_size=0), "batch size 0"),
    ],
)
def test_calls_that_make_no_sense(pipeline, call, named):
    assert named in refusal(lambda: call(pipeline))


def test_parts_that_do_not_belong_together(make_aim, make_vq):
    assert "24 codes against 25" in refusal(lambda: Pipeline(make_vq(codebook_size=25), make_aim()))
    assert "square grid of codes, got 8" in refusal(lambda: Pipeline(make_vq(), make_aim(num_tokens=8)))
    assert "expected 5 class names, one for each class, got 2" in refusal(
        lambda: Pipeline(make_vq(), make_aim(), ["a", "b"])
    )


def test_save_and_load(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    for source in (tmp_path / "saved", str(tmp_path / "saved")):
        loaded = Pipeline.from_pretrained(source)
        assert loaded.class_names == NAMES
        assert torch.equal(pixels(loaded([1, 2], config=GUIDED)), pixels(pipeline([1, 2], config=GUIDED)))
    (tmp_path / "run").mkdir()
    (tmp_path / "saved").rename(tmp_path / "run" / "model")
    assert Pipeline.from_pretrained(tmp_path / "run").class_names == NAMES


def test_names_of_every_alphabet_survive(make_aim, make_vq, tmp_path):
    names = ["Häuser", "猫", 'a "quoted" name', "naïve\\", "😀"]
    Pipeline(make_vq(), make_aim(), names).save_pretrained(tmp_path)
    assert Pipeline.from_pretrained(tmp_path).class_names == tuple(names)


def test_dtype_on_loading(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.tokenizer.dtype == loaded.tokenizer.from_code.weight.dtype == torch.bfloat16
    assert loaded.tokenizer.codebook.dtype == torch.float32
    assert loaded.generator.word_embedding.weight.dtype == torch.bfloat16
    assert loaded(["cats"])[0].size == (6, 6)


def test_official_checkpoint_with_its_tokenizer(golden):
    pipeline = Pipeline.from_pretrained(golden / "adaln")
    assert pipeline.class_names == ()
    assert pipeline.image_size == 64
    io = load_file(golden / "adaln" / "io.safetensors")
    images = pipeline(io["e2e_labels"].tolist(), config=SamplingConfig(top_k=1, cfg_scale=3.0))
    expected = (127.5 * io["e2e_image"] + 128).clamp(0, 255)
    assert (pixels(images) + 0.5 - expected).abs().max() < 0.6, "whole numbers below, but for the rounding of float32"


def test_official_checkpoint_without_its_tokenizer(golden, make_vq, tmp_path):
    message = refusal(lambda: Pipeline.from_pretrained(golden / "group2"), CheckpointError)
    assert "no tokenizer in this checkpoint" in message
    assert "give the tokenizer's place" in message
    make_vq(codebook_size=512).save_pretrained(tmp_path)
    pipeline = Pipeline.from_pretrained(golden / "group2", tokenizer=tmp_path)
    assert pipeline([0])[0].size == (8, 8)
    elsewhere = tmp_path / "nowhere"
    assert str(elsewhere) in refusal(
        lambda: Pipeline.from_pretrained(golden / "group2", tokenizer=elsewhere), CheckpointError
    )


def test_a_thousand_official_classes_have_imagenets_names(make_aim, make_vq, tmp_path):
    generator = make_aim(num_classes=1000)
    Pipeline(make_vq(), generator).save_pretrained(tmp_path)
    (tmp_path / "pipeline.json").unlink()
    loaded = Pipeline.from_pretrained(tmp_path)
    assert loaded.label("golden retriever") == 207
    assert loaded.label("207") == 207


def test_a_missing_part_is_named(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "tokenizer" / "model.safetensors").unlink()
    message = refusal(lambda: Pipeline.from_pretrained(tmp_path), CheckpointError)
    assert "tokenizer" in message


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '"x"',
        '{"class_names": null}',
        '{"class_names": [1, 2, 3, 4, 5]}',
        '{"class_names": "abcde"}',
    ],
)
def test_damaged_names(pipeline, tmp_path, content):
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "pipeline.json").write_text(content)
    assert "class_names" in refusal(lambda: Pipeline.from_pretrained(tmp_path), CheckpointError)


def test_names_are_readable_json(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "pipeline.json").read_text())
    assert content["class_names"] == list(NAMES)
    assert content.keys() == {"class_names", "sha256"}


def test_an_official_checkpoint_in_a_folder_called_generator(golden, tmp_path):
    (tmp_path / "generator").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "generator" / name).write_bytes((golden / "adaln" / name).read_bytes())
    assert Pipeline.from_pretrained(tmp_path / "generator").image_size == 64


def test_imagenets_classes_by_their_synsets(make_aim, make_vq, pipeline):
    imagenet = Pipeline(make_vq(), make_aim(num_classes=1000), imagenet_class_names())
    assert (imagenet.label("n01440764"), imagenet.label("n15075141")) == (0, 999)
    assert "unknown class 'n99999999'" in refusal(lambda: imagenet.label("n99999999"))
    assert "did you mean 'lesser panda' or 'giant panda'" in refusal(lambda: imagenet.label("panda"))
    assert "unknown class 'n01440764'" in refusal(lambda: pipeline.label("n01440764"))


def test_imagenet_names():
    names = imagenet_class_names()
    assert len(names) == 1000
    assert len({name.lower() for name in names}) == 1000, "names are looked up in lower case"
    assert not any(name != name.strip() or not name for name in names)
    assert (names[0], names[207], names[985]) == ("tench", "golden retriever", "daisy")
    assert not any(name.isdigit() for name in names), "a number must mean the label"


def test_a_damaged_official_checkpoint(golden, tmp_path):
    tensors = load_file(golden / "adaln" / "model.safetensors")
    del tensors["vqvae.quant_conv.bias"]
    (tmp_path / "config.json").write_bytes((golden / "adaln" / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    assert "to_code.bias" in refusal(lambda: Pipeline.from_pretrained(tmp_path), CheckpointError)


def test_class_names_that_differ_in_case(make_aim, make_vq):
    """The exact name decides; another spelling is found only where it is the only one."""
    named = Pipeline(make_vq(), make_aim(), ("A", "a", "B", "Straße", "cats"))
    assert [named.label(name) for name in named.class_names] == [0, 1, 2, 3, 4]
    assert [named.label(name) for name in ("b", " CATS ", "STRASSE")] == [2, 4, 3]
    assert "class ' A' could be 'A' (#0) or 'a' (#1); write the exact name" in refusal(lambda: named.label(" A"))


def test_all_bits_of_a_seed_count(pipeline):
    def image(seed):
        return pipeline(["cats"], config=SamplingConfig(seed=seed))[0].tobytes()

    assert len({image(seed) for seed in (1, 1 + 2**32, 1 + 2**33, 1 + 2**62)}) == 4
    assert len(pipeline(["cats"], 2, config=SamplingConfig(seed=2**63 - 1))) == 2
    negative = refusal(lambda: list(pipeline.generate(torch.tensor([0]), GUIDED, seeds=[-1])))
    assert "a seed must be in [0, 2^64), got -1" in negative


def test_settings_as_people_write_them(pipeline, tmp_path):
    expected = pixels(pipeline(["cats"], config=GUIDED))
    assert torch.equal(pixels(pipeline(["cats"], GUIDED)), expected)
    assert torch.equal(pixels(pipeline(["cats"], config={"cfg_scale": 2, "top_p": 0.95, "seed": 3})), expected)
    assert "config: unknown key 'scale'" in refusal(lambda: pipeline(["cats"], config={"scale": 2}))
    pipeline.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path, dtype="bfloat16", device="auto")
    assert loaded.generator.word_embedding.weight.dtype == torch.bfloat16
    assert "dtype 'int8' is unknown" in refusal(lambda: Pipeline.from_pretrained(tmp_path, dtype="int8"))
    assert "device 'gpu' is not available" in refusal(lambda: Pipeline.from_pretrained(tmp_path, device="gpu"))


@pytest.mark.parametrize(("name", "value"), [("top_k", 1.5), ("seed", 1.0), ("top_p", "1"), ("temperature", None)])
def test_settings_of_another_type(name, value):
    """Called directly: the annotations that tests enforce would refuse the value first."""
    settings = SimpleNamespace(**(asdict(SamplingConfig()) | {name: value}))
    assert f"number, got {value!r}" in refusal(lambda: SamplingConfig.__post_init__(settings))


UNTYPED = """
import sys
import numpy as np
import torch
from aimamba import Pipeline, SamplingConfig
from aimamba.errors import AimambaError

pipeline = Pipeline.from_pretrained(sys.argv[1])
settings = {"seed": 3, "top_k": 5, "temperature": 0.5, "temperature_end": 1.0, "cfg_scale": 1.5, "negative": 2}
kinds = np.int64, np.int32, np.float32, np.float32, np.float16, np.int64
given = {name: kind(value) for kind, (name, value) in zip(kinds, settings.items())}
config = SamplingConfig(**given)
assert config == SamplingConfig(**settings)
assert {type(getattr(config, name)) for name in settings} == {int, float}  # which a record in JSON can hold
wanted = pipeline([1, 4], n=2, config=settings, output_type="numpy")
for labels in (np.array([1, 4]), torch.tensor([1, 4]), [np.int64(1), 4]):
    found = pipeline(labels, n=np.int64(2), config=given, batch_size=np.int32(3), output_type="numpy")
    assert np.array_equal(found, wanted)
for labels in (np.array([1, 4, 1, 4]), torch.tensor([1, 4, 1, 4])):
    assert torch.equal(pipeline.score(wanted, labels).bits, pipeline.score(wanted, [1, 4, 1, 4]).bits)
    assert torch.equal(pipeline.score(wanted, labels[0]).bits, pipeline.score(wanted, 1).bits)
for label in (3, np.int64(3), "cats"):
    try:
        pipeline(label)
    except AimambaError as error:
        assert str(error).startswith("expected a list of classes, got the single "), error
"""


def test_numbers_of_numpy_and_tensors_are_numbers(pipeline, tmp_path):
    """In a process of its own: here the types of all arguments are checked."""
    pipeline.save_pretrained(tmp_path)
    command = [sys.executable, "-c", UNTYPED, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["temperature", "temperature_end", "cfg_scale", "top_p"])
def test_numbers_that_are_too_large_for_a_float(name):
    settings = SimpleNamespace(**(asdict(SamplingConfig()) | {name: 10**5000}))
    assert "must be a number below 1.8e308" in refusal(lambda: SamplingConfig.__post_init__(settings))


def test_many_different_prompts_are_read_once_each(pipeline, monkeypatch):
    read = []
    monkeypatch.setattr(
        pipeline, "opening", lambda given: read.append(given) or torch.full((2, 4), float(len(given.text)))
    )
    prompts = [Prompt("a"), Prompt("bb", {"cats": 1}), Prompt("a"), Prompt("bb", {"cats": 1}), Prompt("a", "cats")]
    assert pipeline.labels(prompts)[:, 0, 0].tolist() == [1, 2, 1, 2, 1]
    assert read == [prompts[0], prompts[1], prompts[4]]
