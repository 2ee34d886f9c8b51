"""Finding Inception's weights."""

import hashlib
import io
import urllib.error

import pytest

from aimamba.errors import CheckpointError
from aimamba.evaluation import weights
from aimamba.evaluation.weights import inception_weights
from refusals import one_line_error

CONTENT = b"not quite ninety megabytes"


class Answer(io.BytesIO):
    headers = {"Content-Length": str(len(CONTENT))}  # noqa: RUF012


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda url, timeout: Answer(CONTENT))
    return tmp_path / "cache"


def test_they_are_downloaded_once(cache, monkeypatch):
    path, digest = inception_weights()
    assert path == cache / "weights" / "weights-inception-2015-12-05-6726825d.pth"
    assert path.read_bytes() == CONTENT
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(weights.urllib.request, "urlopen", None)
    assert inception_weights() == (path, digest)


def test_a_file_of_the_user(tmp_path):
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    assert inception_weights(str(tmp_path / "mine.pth"))[0] == tmp_path / "mine.pth"


def test_another_file_is_refused(tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"not the published Inception of 2015-12-05 \(SHA-256 .*: fetch https:"):
        inception_weights(str(tmp_path / "mine.pth"))


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="--features vgg: no such file; give lite0, inception or the file"):
        inception_weights("vgg")


def test_no_network(cache, monkeypatch):
    def fail(url, timeout):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(weights.urllib.request, "urlopen", fail)
    with one_line_error(
        CheckpointError, match=r"\(no route\): fetch https:.*, 95,628,359 bytes, SHA-256 .* or use --features lite0"
    ):
        inception_weights()
    assert not list(cache.glob("weights/*"))
