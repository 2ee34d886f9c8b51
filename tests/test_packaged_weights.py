"""The trained models inside the package are small, load by name without a network, and draw what they should."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aimamba import Pipeline, SamplingConfig
from aimamba.checkpoints import hub, locate
from aimamba.checkpoints.weights import read_tensors
from aimamba.data import STYLES, Avatars
from aimamba.data.sheets import to_float
from aimamba.data.wording import colour_name

NAME = "avatars-64"


@pytest.fixture(scope="module")
def pipeline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
        return Pipeline.from_pretrained(NAME)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return Avatars(64, "held-out", 12, cache_dir=tmp_path_factory.mktemp("avatars"))


def test_it_is_small_and_of_half_precision():
    folder = locate.packaged_models()[NAME]
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 30e6
    for part in ("generator", "tokenizer"):
        tensors = read_tensors(folder / part / "model.safetensors")
        assert sum(tensor.numel() for tensor in tensors.values() if tensor.dtype != torch.float16) < 20_000


def test_classes_and_size(pipeline):
    assert pipeline.class_names == STYLES
    assert (pipeline.image_size, pipeline.grid) == (64, 8)
    assert pipeline.generator.config.decode_position_shift == 0


def test_the_card_counts_the_parameters(pipeline):
    card = (Path(__file__).parent.parent / "docs" / "models" / f"{NAME}.md").read_text(encoding="utf-8")
    counts = (part.num_parameters() for part in (pipeline.tokenizer, pipeline.generator))
    assert "| parameters | {:,} | {:,} |".format(*counts) in card


@torch.no_grad()
def test_the_tokenizer_keeps_held_out_images(pipeline, held_out):
    stacked = np.stack([held_out.image(index) for index in range(0, len(held_out), 4)])
    images = to_float(torch.from_numpy(stacked).permute(0, 3, 1, 2))
    drawn = pipeline.tokenizer(images).images.clamp(-1, 1)
    error = (drawn - images).square().mean(dim=(1, 2, 3))
    assert 10 * torch.log10(4 / error).mean() > 24


def test_samples_show_their_class(pipeline, held_out):
    from aimamba.evaluation.features import open_extractor
    from aimamba.evaluation.measure import to_channels_first
    from aimamba.evaluation.neighbours import knn_accuracy

    labels = torch.arange(len(STYLES)).repeat_interleave(2)
    drawn = pipeline(list(STYLES), n=2, config=SamplingConfig(cfg_scale=1.5), batch_size=20)
    look = open_extractor("lite0")
    samples = look(to_channels_first(np.stack([np.asarray(image) for image in drawn]))).vectors
    images = np.stack([held_out.image(index) for index in range(len(held_out))])
    real = torch.cat([look(to_channels_first(some)).vectors for some in np.array_split(images, 15)])
    found = knn_accuracy(samples, labels, real, torch.from_numpy(held_out.labels), STYLES)
    assert found.majority >= 0.9, found


def test_emoji_are_drawn_after_prompts():
    folder = locate.packaged_models()["emoji-64"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 32.6e6
    emoji = Pipeline.from_pretrained("emoji-64")
    assert emoji.class_names == ("noto", "fluent-flat", "fluent-3d")
    card = (Path(__file__).parent.parent / "docs" / "models" / "emoji-64.md").read_text(encoding="utf-8")
    assert f"| parameters | {emoji.tokenizer.num_parameters():,} | {emoji.generator.num_parameters():,} |" in card
    prompts = ["a grinning face, noto style", "a keycap 5, 3d style", "a red heart, flat design"]
    drawn = np.stack([np.asarray(image) for image in emoji(prompts=prompts, n=6, config={"cfg_scale": 2.5})])
    face, key, heart = np.median(drawn[:, 16:48, 16:48].reshape(3, 6, -1, 3), axis=2).mean(axis=1)  # red, green, blue
    assert min(face[:2]) > 150 > face[2]  # yellow
    assert key[2] > max(key[:2])  # blue
    assert heart[0] > max(heart[1:])  # red


def test_avatars_are_drawn_after_captions():
    avatars = Pipeline.from_pretrained("avatars-64-text")
    assert avatars.class_names == ("critters", "sprouts", "planets", "voxel-bot")
    card = (Path(__file__).parent.parent / "docs" / "models" / "avatars-64-text.md").read_text(encoding="utf-8")
    assert f"| parameters | {avatars.tokenizer.num_parameters():,} | {avatars.generator.num_parameters():,} |" in card
    prompts = ["a yellow monster, purple background", "a blue monster, red background", "a green planet with no ring"]
    drawn = np.stack([np.asarray(image) for image in avatars(prompts=prompts, n=6, config={"cfg_scale": 2.0})])
    corners, middles = (
        np.median(part.reshape(3, 6, -1, 3), axis=2) for part in (drawn[:, :8, :8], drawn[:, 40:56, 24:40])
    )
    assert [plain_colours(corners[0]), plain_colours(middles[0])] == [{"purple"}, {"yellow"}]
    assert [plain_colours(corners[1]), plain_colours(middles[1])] == [{"red"}, {"blue"}]
    corner, middle = corners.mean(axis=1), middles.mean(axis=1)
    assert corner[0, 2] > corner[0, 0] > corner[0, 1]  # purple
    assert min(middle[0, :2]) > 150 > middle[0, 2]  # yellow
    assert corner[1, 0] > 150 > 2 * max(corner[1, 1:])  # red
    assert middle[1, 2] > 150  # blue: one of the style's two has more than that of red too
    assert corner[2].max() < 80  # space
    assert middle[2, 1] > max(middle[2, ::2])  # green


def plain_colours(colours):
    return {colour_name("#" + bytes(colour.astype(np.uint8)).hex()) for colour in colours}
