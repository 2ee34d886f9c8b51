"""``aimamba sample``."""

import numpy as np
import pytest
import torch
from PIL import Image

from aimamba.errors import counted
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline
from aimamba.pipeline import batch_size as batch_sizes
from aimamba.pipeline import core as pipeline_module

SETTINGS = {
    "--temperature 0.3": {"temperature": 0.3},
    "--temperature 0": {"temperature": 0.0},
    "--top-k 2": {"top_k": 2},
    "--top-p 0.3": {"top_p": 0.3},
    "--cfg-scale 4": {"cfg_scale": 4.0},
    "--cfg-scale 4 --cfg-schedule linear": {"cfg_scale": 4.0, "cfg_schedule": "linear"},
    "--cfg-scale 4 --cfg-schedule power-cosine": {"cfg_scale": 4.0, "cfg_schedule": "power-cosine"},
    "--cfg-scale 4 --cfg-schedule power-cosine --cfg-power 3": {
        "cfg_scale": 4.0,
        "cfg_schedule": "power-cosine",
        "cfg_power": 3.0,
    },
    "--seed 1000": {"seed": 1000},
}

REFUSALS = {
    "--classes planet": ["unknown class 'planet'", "did you mean 'planets'", "a number from 0 to 4"],
    "--classes 5": ["unknown class '5'", "0 to 4"],
    "--classes=-1": ["unknown class '-1'", "0 to 4"],
    "--classes ,": ["--classes names no class", "','"],
    "--top-p 0": ["top-p", "(0, 1]", "got 0.0"],
    "--top-p 1.5": ["top-p", "got 1.5"],
    "--top-p nan": ["top-p", "got nan"],
    "--top-k -1": ["top-k", "got -1"],
    f"--top-k {2**63}": ["top-k", "at most 2,147,483,647, got 9223372036854775808"],
    "--cfg-scale 1e39": ["cfg-scale must be from 0 to 1,000,000", "got 1e+39"],
    "--cfg-power 1e308": ["cfg-power must be above 0 and at most 1,000,000"],
    "--temperature -0.5": ["temperature", "got -0.5"],
    "--temperature inf": ["temperature", "got inf"],
    "--cfg-scale -1": ["cfg-scale", "got -1.0"],
    "--cfg-schedule cosine": [
        "cfg_schedule",
        "'constant', 'linear', 'power-cosine'",
        "got 'cosine' (did you mean 'power-cosine'",
    ],
    "--cfg-power 0": ["cfg-power", "got 0.0"],
    "--seed -1": ["seed", "got -1"],
    f"--seed {2**64}": ["seed must be in [0, 2^63), got 18446744073709551616"],
    f"--seed {2**63 - 2} -n 3": ["the last seed would be 9223372036854775808", "below 2^63"],
    "--engine cuda-graphs --device cpu": ["cuda-graphs", "the model is on cpu"],
    "-n 0": ["-n must be at least 1, got 0"],
    "-n -3": ["-n must be at least 1, got -3"],
    "-n 2000001": ["-n 2000001 makes 10,000,005 images", "a folder may have 10,000,000"],
    "--batch-size 0": ["--batch-size must be at least 1, got 0"],
    "--batch-size -2": ["--batch-size must be at least 1, got -2"],
    "--dtype int8": ["dtype 'int8'", "float32, bfloat16, float16, float64"],
    "--device gpu": ["device 'gpu'", "this machine has: auto, cpu"],
    "--device cuda:99": ["device 'cuda:99'", "this machine has: auto, cpu"],
    "--tokenizer nowhere": ["nowhere: no such file or folder"],
}


def pixels(folder):
    return {path.name: np.asarray(Image.open(path)) for path in folder.glob("*-seed*.png")}


def size(path):
    with Image.open(path) as image:
        return image.size


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_files_tell_class_and_seed(aimamba, models, pipeline, here):
    options = ["--classes", "sprouts,sea shells", "-n", 3, "--seed", 5, "--device", "cpu", "--out", "new/sampled"]
    status, out, err = aimamba("sample", "--model", models / "pipeline", *options)
    assert status == 0
    assert out == "6 images in new/sampled, on one sheet: new/sampled/sheet.png\n"
    assert "6.0/6 images" in err
    stems = [f"{name}-seed{seed}.png" for name in ("sea-shells", "sprouts") for seed in (5, 6, 7)]
    assert sorted(path.name for path in (here / "new/sampled").iterdir()) == sorted(
        [*stems, "settings.json", "sheet.png"]
    )
    sampled = pixels(here / "new/sampled")
    expected = pipeline(["sprouts", "sea shells"], 3, SamplingConfig(seed=5))
    for index, image in enumerate(expected):
        name = ("sprouts", "sea-shells")[index // 3]
        assert np.array_equal(sampled[f"{name}-seed{5 + index % 3}.png"], np.asarray(image))
    width, height = size("new/sampled/sheet.png")
    assert width > 3 * 64
    assert 2 * 64 < height < width


def test_the_batch_size_changes_nothing(aimamba, models, here):
    command = ["sample", "--model", models / "pipeline", "-n", 3, "--cfg-scale", 2, "--device", "cpu"]
    for batch_size in (1, 2, 7, 100):
        assert aimamba(*command, "--batch-size", batch_size, "--out", f"by-{batch_size}").status == 0
    sampled = pixels(here / "by-100")
    assert len(sampled) == 15
    assert len({image.tobytes() for image in sampled.values()}) > 9
    for batch_size in (1, 2, 7):
        assert same(pixels(here / f"by-{batch_size}"), sampled)


@pytest.mark.parametrize("npz", [False, True])
def test_on_a_card_the_batch_size_is_chosen_and_told(aimamba, models, here, monkeypatch, npz):
    """With a stand-in for a card of which a quarter holds three guided images; 15 are wanted."""
    seen, batches = [], Pipeline.batches

    def noted(self, jobs, *given, **named):
        return batches(self, (seen.append(len(job)) or job for job in jobs), *given, **named)

    def memory(device):
        return 4 * 6 * Pipeline.from_pretrained(models / "pipeline").prepare().init_state(1).nbytes

    monkeypatch.setattr(Pipeline, "batches", noted)
    command = ["sample", "--model", models / "pipeline", "--cfg-scale", 2, "--device", "cpu"]
    command += ["-n", 15, "--npz", "a.npz"] if npz else ["-n", 3, "--out", "plain"]
    usual = aimamba(*command)
    assert (usual.status, seen) == (0, [15]), "16 at once elsewhere"
    assert "at once" not in usual.err
    before = (here / "a.npz").read_bytes() if npz else pixels(here / "plain")
    seen.clear()
    monkeypatch.setattr(batch_sizes, "_memory", memory)
    command = [f"other{word}" if word in ("a.npz", "plain") else word for word in command]
    chosen = aimamba(*command)
    assert (chosen.status, seen) == (0, [3] * 5)
    assert "3 images at once, as fits this device (--batch-size)\n" in chosen.err
    assert ((here / "othera.npz").read_bytes() == before) if npz else same(pixels(here / "otherplain"), before)
    seen.clear()
    given = aimamba(*[f"given{word}" if str(word).startswith("other") else word for word in command], "--batch-size", 4)
    assert (given.status, seen) == (0, [4, 4, 4, 3])
    assert "at once" not in given.err


@pytest.mark.parametrize("flags", SETTINGS)
def test_every_setting_arrives(aimamba, models, pipeline, here, flags):
    options = ["--classes", 0, "-n", 4, "--device", "cpu", "--out", "sampled", *flags.split()]
    assert aimamba("sample", "--model", models / "pipeline", *options).status == 0
    expected = pipeline([0], 4, SamplingConfig(**SETTINGS[flags]))
    seed = SETTINGS[flags].get("seed", 0)
    sampled = pixels(here / "sampled")
    assert same(sampled, {f"planets-seed{seed + j}.png": np.asarray(image) for j, image in enumerate(expected)})
    plain = pipeline([0], 4)
    assert any(not np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(plain, expected, strict=True))


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        ("planets", {"planets"}),
        ("3", {"sea-shells"}),
        (" Robots , 0 ,", {"Robots", "planets"}),
        ("PLANETS,0,planets", {"planets"}),
        ("cats, small", {"cats-small"}),
        ("planets,cats, small,1", {"planets", "cats-small", "sprouts"}),
    ],
)
def test_classes_by_name_and_number(aimamba, models, here, classes, names):
    out = aimamba("sample", "--model", models / "pipeline", "--classes", classes, "-n", 1).out
    assert out.startswith(f"{counted(len(names), 'image')} in samples")
    assert pixels(here / "samples").keys() == {f"{name}-seed0.png" for name in names}


def test_ten_classes_and_eight_images_by_default(aimamba, make_aim, make_vq, here):
    Pipeline(make_vq(), make_aim(num_classes=12, num_tokens=1)).save_pretrained(here / "twelve")
    assert aimamba("sample", "--model", "twelve").status == 0
    assert pixels(here / "samples").keys() == {f"class-{i}-seed{j}.png" for i in range(10) for j in range(8)}


def test_a_sheet_is_rather_wide_than_tall(aimamba, models, here):
    for n in (1, 7):
        options = ["--model", models / "pipeline", "-n", n, "--device", "cpu", "--out", str(n)]
        assert aimamba("sample", *options).status == 0
        width, height = size(f"{n}/sheet.png")
        assert width > 2 * height if n == 1 else width > height, (
            "five classes: five columns of one, or five rows of seven"
        )


def test_a_sheet_does_not_grow_for_ever(aimamba, make_aim, make_vq, here):
    Pipeline(make_vq(), make_aim(num_tokens=1)).save_pretrained(here / "one")
    for n in (32, 40):
        aimamba("sample", "--model", "one", "-n", n, "--classes", 0, "--out", n)
        assert len(pixels(here / str(n))) == n
    assert size("32/sheet.png") == size("40/sheet.png")


def test_ctrl_c_leaves_what_is_finished(aimamba, models, here, monkeypatch):
    generate, calls = pipeline_module.generate, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(pipeline_module, "generate", interrupted)
    status, out, err = aimamba("sample", "--model", models / "pipeline", "-n", 2, "--batch-size", 2)
    assert (status, out) == (130, "")
    assert err.endswith(
        "aimamba: stopped with 4 of 10 images finished, in samples; the same command goes on from there\n"
    )
    assert len(pixels(here / "samples")) == 4


@pytest.mark.parametrize("flags", REFUSALS)
def test_refusals(refusal, models, here, flags):
    message = refusal("sample", "--model", models / "pipeline", *flags.split())
    for part in REFUSALS[flags]:
        assert part in message
    assert not (here / "samples").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(refusal, models):
    assert refusal("sample", "--model", models / "pipeline", "--device", "cuda").startswith("device 'cuda' is not")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(aimamba, models, here, dtype):
    assert aimamba("sample", "--model", models / "pipeline", "-n", 1, "--dtype", dtype).status == 0
    assert len(pixels(here / "samples")) == 5


def test_a_tokenizer_alone(refusal, models):
    message = refusal("sample", "--model", models / "tokenizer")
    assert "holds a tokenizer alone" in message
    assert f"aimamba train RECIPE --tokenizer {models / 'tokenizer'}" in message


def test_a_generator_and_its_tokenizer(aimamba, refusal, models, here):
    assert "give its tokenizer with --tokenizer" in refusal("sample", "--model", models / "generator")
    command = ["sample", "--model", models / "generator", "--tokenizer", models / "tokenizer", "-n", 1, "--classes", 2]
    assert aimamba(*command).status == 0
    assert pixels(here / "samples").keys() == {"class-2-seed0.png"}


def test_a_tokenizer_of_other_codes(refusal, models, make_vq):
    make_vq(codebook_size=30).save_pretrained("other")
    message = refusal("sample", "--model", models / "generator", "--tokenizer", "other")
    assert "24 codes against 30" in message
    assert "give the tokenizer" in message


def test_an_output_that_is_a_file(refusal, models, here):
    (here / "file").touch()
    assert "is a file" in refusal("sample", "--model", models / "pipeline", "--out", "file")


def test_an_npz_for_adms_evaluator(aimamba, models, pipeline, here):
    command = ["sample", "--model", models / "pipeline", "--npz", "s.npz", "-n", 7, "--seed", 3, "--cfg-scale", 2]
    status, out, _ = aimamba(*command, "--batch-size", 2)
    assert (status, out) == (0, "7 images of 6 px in s.npz\n")
    assert not (here / "samples").exists()
    with np.load("s.npz") as content:
        assert content["arr_0"].shape == (7, 6, 6, 3)
        assert content["arr_0"].dtype == np.uint8
        assert content["arr_1"].tolist() == [0, 1, 2, 3, 4, 0, 1]
        for index in (0, 6):
            [image] = pipeline([index % 5], 1, SamplingConfig(seed=3 + index, cfg_scale=2.0))
            assert np.array_equal(content["arr_0"][index], np.asarray(image))
    assert aimamba(*command, "--labels", "random").status == 0
    with np.load("s.npz") as content:
        labels = content["arr_1"]
    assert labels.tolist() != [0, 1, 2, 3, 4, 0, 1]
    assert set(labels.tolist()) <= set(range(5))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--npz s.npz --classes 1", "--npz samples all classes"),
        ("--npz s.npy", "the name must end in .npz"),
        ("--labels random", "--labels needs --npz"),
        ("--npz s.npz --labels even", "balanced or random, got 'even'"),
        ("--npz no/s.npz", "there is no folder no"),
        ("--npz .", "is a folder"),
    ],
)
def test_refusals_of_an_npz(refusal, models, here, flags, message):
    assert message in refusal("sample", "--model", models / "pipeline", *flags.split())
    assert not list(here.glob("*.npz"))


def test_all_classes(aimamba, models, here):
    assert aimamba("sample", "--model", models / "pipeline", "--classes", "all", "-n", 1).status == 0
    assert len(list((here / "samples").glob("*-seed0.png"))) == 5
