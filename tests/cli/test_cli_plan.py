"""``aimamba plan``."""

import pytest


@pytest.fixture
def planned(aimamba):
    def run(*arguments):
        status, out, err = aimamba("plan", *arguments)
        assert (status, err) == (0, "")
        return out.splitlines()

    return run


def test_a_generator(planned):
    lines = planned("aim-b-imagenet256", "--gpus", "16", "--gpu", "a100-80gb", "--tokens-per-second", "100000")
    assert lines[0] == "aim-b-imagenet256: 147,622,080 parameters, 256 codes an image"
    assert lines[1].startswith("16 x a100-80gb: 79.1 GiB each, of which ")
    rows = {line[:29].strip(): line[29:].split() for line in lines if line.endswith(tuple("0123456789"))}
    assert rows["parameters"] == ["0.55", "0.55"]
    assert rows["optimiser"] == ["1.10", "1.10"]
    assert rows["images at once, here"] == ["128", "128"]
    assert "187,671 steps of 2,048 images, 128 a GPU: 384,350,208 images, 98,393,653,248 codes" in lines
    assert "17.1 hours at 100,000 codes a second of one GPU (given)" in lines
    assert lines[-1].startswith("torchrun --nnodes 2 --nproc-per-node 8 ")
    assert lines[-1].endswith(
        "-m aimamba train aim-b-imagenet256 --set parallel.replicate=16 --set parallel.shard=1 "
        "--set fit.accumulation=1 --set task.checkpointing=false"
    )


@pytest.mark.parametrize(
    ("steps", "said"),
    [(36_000, "2.0 hours at"), (9_000, "30 minutes at"), (300, "1 minute at"), (1, "less than a minute at")],
)
def test_a_short_training_takes_minutes(planned, steps, said):
    options = ["--tokens-per-second", "320", "--set", f"fit.steps={steps}", "--set", "fit.batch_size=1"]
    lines = planned("avatars-tiny-aim", "--gpus", "1", "--gpu", "a100-80gb", *options)
    assert [line for line in lines if line.startswith(said)]


def test_a_rate_that_several_processes_cannot_reach(planned):
    note = "note: several processes cannot record a CUDA graph"
    options = ["aim-b-imagenet256", "--gpu", "h200-141gb", "--set", "model.num_blocks=1"]
    lines = {gpus: planned(*options, "--gpus", str(gpus)) for gpus in (1, 2)}
    assert note not in "\n".join(lines[1])
    assert note in "\n".join(lines[2])


def test_changed_settings_reach_the_command(planned):
    options = ["--gpus", "1", "--data", "my codes", "--batch-size", "32", "--steps", "10"]
    lines = planned("aim-b-imagenet256", *options, "--set", "model.num_blocks=2", "--set", "task.checkpointing=true")
    assert "10 steps of 32 images, 32 a GPU: 320 images, 81,920 codes" in lines
    assert lines[-1] == (
        "aimamba train aim-b-imagenet256 --data 'my codes' --steps 10 --batch-size 32 --set model.num_blocks=2 "
        "--set fit.accumulation=1 --set task.checkpointing=true"
    )


def test_a_model_to_start_from(planned):
    lines = planned("vq-finetune", "--gpus", "1", "--init", "avatars-64", "--size", "64", "--data", "photos")
    assert lines[0] == "vq-finetune: 7,777,944 parameters, 64 codes an image"
    assert lines[-1] == ("aimamba train vq-finetune --data photos --init avatars-64 --size 64 --set fit.accumulation=1")


@pytest.mark.parametrize("given", ["parallel.shard=4", "parallel.replicate=2"])
def test_the_layout_of_a_recipe(planned, given):
    lines = planned("avatars-tiny-vq", "--gpus", "8", "--set", given)
    assert lines[-1].count("parallel.") == 2
    assert "--set parallel.replicate=2 --set parallel.shard=4" in lines[-1]


def test_a_tokenizer_without_its_images(planned):
    lines = planned("avatars-tiny-vq", "--gpus", "4", "--memory", "48GB", "--data", "nowhere")
    assert "hours: nothing was measured to go by; give --tokens-per-second, the codes of one GPU" in lines
    assert "4 x a GPU with 48GB: 44.7 GiB each" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus must be 1 to 4,096, got 0"),
        (["--gpus", "8", "--gpu", "h10"], "unknown GPU 'h10'"),
        (["--gpus", "8", "--shard", "3"], "--shard must divide --gpus = 8"),
        (["--gpus", "8", "--shard", "2", "--set", "parallel.shard=4"], "parallel.shard = 4, but 8 GPUs with --shard 2"),
        (
            ["--gpus", "8", "--set", "parallel.replicate=3"],
            "parallel.replicate = 3, but 8 GPUs with --shard 1 make it 8",
        ),
        (["--gpus", "8", "--memory", "1GB"], "not even one image fits"),
        (["--gpus", "8", "--set", "fit.stepz=3"], "unknown setting 'fit.stepz'"),
        (["--gpus", "1", "--batch-size", "4611686018427387904"], "fit.batch_size must be at most 1,048,576"),
        (["--gpus", "8", "--set", "fit.steps"], "--set expects KEY=VALUE"),
        ([], "the following arguments are required: --gpus"),
    ],
)
def test_bad_input_is_one_line(refusal, arguments, message):
    assert message in refusal("plan", "aim-b-imagenet256", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["avatars-tiny-vq", "--size", "0"], "data.size = 0 is the size of the images of a generator's 'init'; give"),
        (["avatars-tiny-vq", "--size", "33"], "must be a multiple of the tokenizer's down-sampling 4, got 33"),
        (["avatars-tiny-vq", "--set", "task.decoder_only=true"], "so it needs one: name it in 'init' or with --init"),
        (["avatars-tiny-vq", "--set", "fit.compile=true"], "fit.compile is for generators only"),
        (["aim-finetune", "--init", "runs/mine"], "data.size = 0 is the size of the images of 'init', and runs/mine"),
        (["aim-finetune", "--init", ""], "init is empty; name a model in it or with --init"),
        (["avatars-tiny-aim", "--init", "avatars-64"], "avatars-64 has vocab_size 8192, but these images and this to"),
    ],
)
def test_what_training_refuses_is_not_planned(refusal, arguments, message):
    assert message in refusal("plan", *arguments, "--gpus", "1")


def test_sizes_beyond_64_bits(refusal):
    options = ["--gpus", "1", "--set", "data.size=65536", "--set", "model.attention=true"]
    assert "tensors of more bytes than 64 bits can count" in refusal("plan", "avatars-tiny-vq", *options)
