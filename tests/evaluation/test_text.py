"""Whether samples show what captions say: metrics, the network that reads attributes, and everything together."""

from types import MappingProxyType
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from aimamba.data import captioned
from aimamba.data.avatar_captions import captions_of, describe, mentions_of
from aimamba.data.captioned import CaptionedAvatars
from aimamba.data.emoji import EmojiImages
from aimamba.data.images import Images
from aimamba.data.sets import open_source
from aimamba.data.vocabulary import Vocabulary
from aimamba.errors import ConfigError, DataError
from aimamba.evaluation import attribute_reader, text
from aimamba.evaluation.attribute_reader import trained_reader
from aimamba.evaluation.attributes import attribute_accuracy
from aimamba.evaluation.caption_bits import caption_bits, caption_likelihoods
from aimamba.evaluation.captioned_set import CaptionedImages
from aimamba.evaluation.features import Features
from aimamba.evaluation.plots import Series, beside, plot
from aimamba.evaluation.retrieval import cosine_to_subjects, retrieval
from aimamba.evaluation.text import TextRequest, evaluate_text, judge_samples, make_judge
from aimamba.evaluation.text_metrics import figure
from aimamba.models.text import TextConfig
from aimamba.pipeline import Pipeline, Prompt
from emoji_packages import use_small_packages
from refusals import one_line_error

STYLES = ["critters", "planets"]

pytestmark = pytest.mark.filterwarnings("ignore::aimamba.data.vocabulary.TruncatedCaptionWarning")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(captioned, "AVATARS_PER_CLASS", {"train": 40, "held-out": 30})
    monkeypatch.setattr(text, "TRAINED_ON", 40)
    for name, value in {"_SIDE": 16, "_WIDTH": 8, "_EPOCHS": 10, "_BATCH": 8}.items():
        monkeypatch.setattr(attribute_reader, name, value)
    monkeypatch.setattr(text, "open_extractor", lambda name, device: Pixels())


@pytest.fixture
def avatars():
    return CaptionedImages(CaptionedAvatars(8, "held-out", styles=STYLES))


class Pixels:
    """A network without weights: mean colours."""

    name, width, spatial_width, batch_size, device = "plain", 48, 0, 4, torch.device("cpu")
    settings = MappingProxyType({"network": "pixels"})

    def __call__(self, images):
        return Features(torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1))


class Chosen(Images):
    """Some images of a set: samples of a model that has learned them by heart."""

    name, class_names, labels = "samples", (), None

    def __init__(self, images, indices):
        self.size, self._images, self._indices = images.size, images, list(indices)

    def __len__(self):
        return len(self._indices)

    def image(self, index, rng=None):
        return self._images.image(self._indices[index])


def test_attribute_accuracy_counts_what_is_mentioned():
    seen = [{"style": "a", "eyes": "one", "top": "fin"}, {"style": "b", "eyes": "two"}, {"style": "a", "top": "fin"}]
    mentioned = [
        {"style": "a", "eyes": "one"},
        {"style": "a", "eyes": "two"},
        {"style": "a", "top": "fin", "eyes": "x"},
    ]
    found = attribute_accuracy(seen, mentioned)
    assert found.accuracy == 3 / 4
    assert found.binding == 1 / 3
    assert found.by_attribute == {"eyes": 2 / 3, "style": 2 / 3, "top": 1.0}
    with one_line_error(DataError, "mention no attributes"):
        attribute_accuracy(seen[:1], [{"style": "a"}])


def test_mentions_are_what_the_captions_tell():
    attributes = {
        "colour": "red",
        "shape": "stepped",
        "eyes": "one",
        "mouth": "wavy",
        "top": "none",
        "background": "blue",
    }
    mentions = mentions_of("critters", attributes, "key")
    captions = captions_of("critters", attributes, "key")
    assert len(mentions) == len(captions)
    assert mentions[0] == mentions[1] == {name: attributes[name] for name in ("colour", "eyes", "mouth", "background")}
    for number, (some, caption) in enumerate(zip(mentions, captions, strict=True)):
        assert describe("critters", some, f"key/{number}").count(" ") <= caption.count(" ") + 1
        for name in ("colour", "background"):
            assert (attributes[name] in caption) == (name in some)


def test_retrieval_against_chance_and_truth():
    similarity = torch.eye(8)
    right = torch.arange(8)
    assert retrieval(similarity, right)[:3] == (1.0, 1.0, 8.0)
    alike = retrieval(torch.zeros(8, 8), right)  # a model that ignores captions
    assert (alike.first, alike.fifth) == (pytest.approx(1 / 8), pytest.approx(5 / 8))
    last = retrieval(-similarity, right)
    assert (last.first, last.fifth) == (0.0, 0.0)
    assert retrieval(similarity, right, candidates=3).candidates == 3
    similarity[0, 1:] = -torch.inf
    with one_line_error(DataError, "two different images"):
        retrieval(similarity, right)
    with one_line_error(DataError, "not among the candidates"):
        retrieval(similarity[:1], torch.tensor([1]))


def test_a_subject_is_as_near_as_its_nearest_image():
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    found = cosine_to_subjects(torch.tensor([[0.0, 3.0]]), images, torch.tensor([0, 2, 0]), 3)
    assert torch.allclose(found, torch.tensor([[0.5**0.5, -torch.inf, 1.0]]))


def test_the_reader_learns_and_is_kept(monkeypatch):
    train, held_out = (CaptionedAvatars(8, split, styles=STYLES) for split in ("train", "held-out"))
    reader = trained_reader(train)
    first = reader.read(held_out.take(range(len(held_out))))
    truth = [held_out.attributes(index) for index in range(len(held_out))]
    styles = [seen["style"] == each["style"] for seen, each in zip(first, truth, strict=True)]
    assert np.mean(styles) > 0.9
    assert all(set(seen) == set(each) for seen, each, ok in zip(first, truth, styles, strict=True) if ok)
    monkeypatch.setattr(attribute_reader.AttributeReader, "fit", None)
    assert trained_reader(train).read(held_out.take(range(len(held_out)))) == first


def test_samples_that_show_the_truth_reach_the_ceiling_and_others_the_floor(avatars):
    judge = make_judge(avatars, Pixels())
    captions = avatars.captions(3 * len(avatars.chosen))
    assert {caption.image for caption in captions} == set(range(len(avatars.images)))
    assert len({caption.text for caption in captions}) > len(avatars.images), "all captions are used in turn"
    truth = [caption.image for caption in captions]
    best = judge_samples(Chosen(avatars.images, truth), captions, judge, 1.0)
    worst = judge_samples(Chosen(avatars.images, [*truth[1:], truth[0]]), captions, judge, 1.0)
    seen = judge.reader.read_all(avatars.images)
    assert best.attributes == attribute_accuracy([seen[index] for index in truth], [each.mentions for each in captions])
    assert best.attributes.accuracy > worst.attributes.accuracy + 0.1
    assert best.attributes.binding > worst.attributes.binding
    assert best.retrieval.first == 1.0
    assert worst.retrieval.first < 0.2
    assert best.same_design is None
    assert abs(best.distances.frechet) < 0.05


def test_emoji_are_compared_with_their_names_in_all_designs(monkeypatch, tmp_path):
    monkeypatch.setenv("AIMAMBA_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))
    use_small_packages(monkeypatch, tmp_path / "data" / "emoji")
    images = EmojiImages(8, "held-out")
    emoji = CaptionedImages(images)
    judge = make_judge(emoji, Pixels())
    assert len(judge.gallery.images) > len(images), "other designs are trained on"
    captions = emoji.captions(2 * len(images))
    found = judge_samples(Chosen(images, [each.image for each in captions]), captions, judge, 1.0)
    assert found.same_design.first == found.retrieval.first == 1.0
    assert found.same_design.candidates <= found.retrieval.candidates
    assert found.attributes is None
    # The picture in another design is right among all, and wrong where the design counts.
    subjects, designs = judge.gallery.subjects, judge.gallery.designs
    other = []
    for each in captions:
        shown = (subjects == judge.subjects[each.image]) & (designs != judge.designs[each.image])
        other.append(int(shown.nonzero()[0]))
    crossed = judge_samples(Chosen(judge.gallery.images, other), captions, judge, 1.0)
    assert crossed.retrieval.first == 1.0
    assert crossed.same_design.first < 1.0
    concepts = [images.emoji[each.image].concept for each in emoji.distinct(100)]
    assert len(set(concepts)) == len(concepts)


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train(["a red critter with one eye", "a planet with a ring"], 270)


@pytest.fixture(scope="module")
def pipeline(make_aim, make_vq, vocabulary):
    config = TextConfig(tokens=8, vocabulary=len(vocabulary), width=32, blocks=1)
    return Pipeline(make_vq(), make_aim(text=config, num_tokens=16), tuple("abcde"), vocabulary)


def test_bits_of_a_model_that_has_learned_its_captions(make_aim, make_vq, vocabulary):
    config = TextConfig(tokens=8, vocabulary=len(vocabulary), width=32, blocks=1)
    pipeline = Pipeline(make_vq(), make_aim(text=config), tuple("abcde"), vocabulary)
    texts = ["a red critter", "a planet", "one eye"]
    codes = torch.randint(24, (3, 9), generator=torch.Generator().manual_seed(0))
    model, given = pipeline.generator, torch.from_numpy(vocabulary.encode(texts, 8).ids)
    before = caption_likelihoods(pipeline, codes, texts)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        logits = model(codes[:, :-1], torch.full((3,), 5), given)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    prompts = [Prompt(text) for text in texts]
    bits = caption_bits(pipeline, codes, prompts, [*prompts[1:], prompts[0]])
    assert bits.right < bits.none
    assert bits.right + 0.5 < bits.wrong
    assert bits.right == pytest.approx(float(loss.detach()) / np.log(2), abs=0.3)
    assert bits.images == 3
    after = caption_likelihoods(pipeline, codes, texts)
    assert retrieval(after, torch.arange(3)).first == 1.0
    assert not torch.equal(before, after)


def test_everything_together(pipeline):
    request = TextRequest(images="captioned-avatars-8:critters:held-out:6", model="m", count=9, sweep=(2.0, 1.0))
    found = evaluate_text(request, pipeline)
    (only,) = found.sets
    assert (only.name, only.images, only.samples) == (request.images, 6, 9)
    assert [each.cfg_scale for each in only.guidance] == [1.0, 2.0]
    assert only.bounds.floor.accuracy < only.bounds.ceiling.accuracy
    values = found.to_dict()["plain"][request.images]
    assert values["guidance"][0].keys() >= {"cfg_scale", "attributes", "images_of_samples", "frechet", "kid"}
    assert evaluate_text(request, pipeline).to_dict() == found.to_dict()
    rows = dict(only.rows("plain"))
    assert "with a wrong one" in rows["  bits a token"]
    assert "  samples at guidance 2: attributes, binding" in rows
    assert figure("plain", found.sets).count("<svg") == 6
    both = TextRequest(images="captioned-avatars-8:planets", model="m")
    assert both.set_names == (f"{both.images}:held-out", f"{both.images}:held-out-pairs")
    assert both.scales == [1.0]


@pytest.mark.filterwarnings("ignore::aimamba.data.caption_files.CaptionWarning")
def test_a_folder_with_captions_has_no_attributes(pipeline, folder):
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        if number:  # one has no caption
            path.with_suffix(".txt").write_text(f"picture {number}")
    found = evaluate_text(TextRequest(images=str(folder), model="m", count=4), pipeline).sets[0]
    assert found.images == 9
    assert found.bounds is None
    assert found.guidance[0].attributes is None
    assert "attributes" not in str(found.to_dict())
    assert figure("plain", [found]).count("<svg") == 4


def test_refusals(pipeline, make_aim, make_vq, folder):
    with one_line_error(DataError, "0 images with captions, and at least 2 are needed"):
        evaluate_text(TextRequest(images=str(folder), model="m"), pipeline)
    with one_line_error(DataError, "16 x 16 pixels, and the model's have 8"):
        evaluate_text(TextRequest(images="captioned-avatars-16:held-out:2", model="m"), pipeline)
    with one_line_error(ConfigError, "m: this generator takes classes and no captions"):
        evaluate_text(TextRequest(images="emoji", model="m"), Pipeline(make_vq(), make_aim(num_tokens=16)))
    for values, message in (({"count": 1}, "-n must"), ({"batch_size": 0}, "--batch"), ({"sweep": (-1.0,)}, "--sweep")):
        with one_line_error(ConfigError, message):
            TextRequest(images="emoji", model="m", **values)
    with one_line_error(DataError, "expected a folder"):
        TextRequest(images="photo", model="m").set_names  # noqa: B018
    assert not CaptionedImages(open_source("captioned-avatars-8:critters:held-out:2")).captions(0)


def test_plots_beside_each_other():
    drawn = plot("a", "x", "y", [Series("", [(0.0, 1.0), (1.0, 2.0)])])
    both = beside([drawn, drawn, drawn])
    assert len(ElementTree.fromstring(both)) == 3, "well-formed, too"
    assert 'viewBox="0 0 840 624"' in both, "two rows of 312, legends included"
    assert '<svg x="0" y="312"' in both
