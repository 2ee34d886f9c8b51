"""Model cards and uploads."""

import re
from types import SimpleNamespace

import httpx
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors.torch import load_file

from aimamba.errors import CheckpointError, ConfigError
from aimamba.pipeline import ModelCard, Pipeline, publishing
from refusals import one_line_error

REFUSED = httpx.Response(401, request=httpx.Request("POST", "https://hub"))
NAMES = ("planets", "sprouts", "Robo|`ts", "sea shells", "cats")


@pytest.fixture
def pipeline(make_aim, make_vq):
    return Pipeline(make_vq(), make_aim(), NAMES)


def test_a_card_says_what_a_stranger_needs(pipeline, tmp_path):
    metrics = {"FID | 50k": 2.20971, "bits a token": "4.1"}
    card = ModelCard(license="mit", description="My model.", metrics=metrics, samples=2, base_model="a/b")
    pipeline.save_pretrained(tmp_path / "mine", card=card)
    text = (tmp_path / "mine" / "README.md").read_text()
    assert text.startswith("---\n")
    for line in ("license: mit", "base_model: a/b", "library_name: aimamba", "# mine", "My model."):
        assert line in text.splitlines()
    assert "from_pretrained('mine')" in text
    assert "5 classes: `planets`, `sprouts`, `Robo| ts`" in text
    assert "| FID \\| 50k | 2.21 |" in text
    assert "![Samples](samples.png)" in text
    with Image.open(tmp_path / "mine" / "samples.png") as image:
        assert image.height > 5 * 2 * pipeline.image_size
    assert Pipeline.from_pretrained(tmp_path / "mine").class_names == NAMES


def test_a_readme_of_the_author_stays(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert not (tmp_path / "README.md").exists()
    pipeline.save_pretrained(tmp_path, card=ModelCard(license="mit"))
    pipeline.save_pretrained(tmp_path, card=ModelCard(license="cc0-1.0"))
    text = (tmp_path / "README.md").read_text()
    assert "license: cc0-1.0" in text
    mine = re.sub("<!-- written by aimamba.*\n", "", text) + "\nmine"
    (tmp_path / "README.md").write_text(mine)
    pipeline.save_pretrained(tmp_path, card=ModelCard(license="mit", samples=1))
    assert (tmp_path / "README.md").read_text() == mine


@pytest.mark.parametrize("wrong", [{"license": "my own\nlicense"}, {"samples": -1}])
def test_a_card_that_is_none(wrong):
    with one_line_error(ConfigError):
        ModelCard(**wrong)


class Hub:
    """Stands for ``HfApi``."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def __call__(self, **settings):
        self.calls.append(("api", settings))
        return self

    def create_repo(self, repo_id, **settings):
        if self.error is not None:
            raise self.error
        self.calls.append(("create", repo_id, settings))
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, repo_id, **settings):
        self.calls.append(("branch", repo_id, settings))

    def upload_folder(self, *, folder_path, **settings):
        self.files = {str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()}
        self.weights = load_file(folder_path / "generator" / "model.safetensors")
        self.text = (folder_path / "README.md").read_text()
        self.calls.append(("upload", settings))
        return SimpleNamespace(commit_url="https://hub/commit", pr_url="https://hub/pr")


def test_a_pipeline_is_uploaded_with_its_card(pipeline, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(publishing, "HfApi", hub)
    assert pipeline.push_to_hub("me/mine", private=True, token="secret", revision="v1", dtype="bfloat16") == (
        "https://hub/commit"
    )
    assert hub.files == {
        "README.md", "samples.png", "pipeline.json",
        *(f"{part}/{name}" for part in ("generator", "tokenizer") for name in ("config.json", "model.safetensors")),
    }  # fmt: skip
    assert "from_pretrained('me/mine')" in hub.text
    assert hub.weights["word_embedding.weight"].dtype == torch.bfloat16
    assert pipeline.dtype == torch.float32
    assert hub.calls[0] == ("api", {"token": "secret"})
    assert hub.calls[1][2]["private"] is True
    assert [call[0] for call in hub.calls] == ["api", "create", "branch", "upload"]
    assert hub.calls[3][1]["revision"] == "v1"
    assert pipeline.push_to_hub("me/mine", create_pr=True) == "https://hub/pr"


@pytest.mark.parametrize(
    "error",
    [
        HfHubHTTPError(
            "401 Unauthorized\nsecond line", response=httpx.Response(401, request=httpx.Request("POST", "x:"))
        ),
        OSError("no token\nsecond line"),
    ],
)
def test_an_upload_that_fails(pipeline, monkeypatch, error):
    monkeypatch.setattr(publishing, "HfApi", Hub(error))
    with one_line_error(CheckpointError) as caught:
        pipeline.push_to_hub("me/mine")
    assert "me/mine: the upload to the hub failed" in str(caught.value)


def test_an_id_that_is_none(pipeline):
    with one_line_error(CheckpointError) as caught:
        pipeline.push_to_hub("not an id")
    assert "not a hub id" in str(caught.value)
