"""What users of diffusers write: each argument works, or one line says what to write instead."""

import numpy as np
import pytest
import torch

from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline
from refusals import one_line_error


@pytest.fixture(scope="module")
def pipeline(make_aim, make_vq):
    return Pipeline(make_vq(), make_aim(), tuple("abcde"))


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def test_scale_number_and_settings_by_name(pipeline):
    expected = pixels(pipeline(["a", "b"], 2, SamplingConfig(cfg_scale=2.0, seed=3, top_k=4)))
    config = SamplingConfig(seed=3, temperature=0.5)
    given = pipeline(["a", "b"], config=config, guidance_scale=2.0, num_images_per_prompt=2, top_k=4, temperature=1.0)
    assert np.array_equal(pixels(given), expected)
    assert np.array_equal(pixels(pipeline(["a", "b"], 2, cfg_scale=2.0, seed=3, top_k=4)), expected)
    mapped = pipeline(["a", "b"], 2, [{"seed": 3}, {"seed": 3}], guidance_scale=2.0, top_k=4)
    assert np.array_equal(pixels(mapped), expected)


def test_a_generator_gives_the_seeds(pipeline):
    rng = torch.Generator().manual_seed(5)
    first, second = (pixels(pipeline(["a"], 2, generator=rng)) for _ in range(2))
    assert not np.array_equal(first, second), "it goes on"
    again = pixels(pipeline(["a"], 2, generator=torch.Generator().manual_seed(5)))
    assert np.array_equal(again, first)
    listed = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    assert np.array_equal(pixels(pipeline(["a"], 2, generator=listed))[0], first[0])


@pytest.mark.parametrize(
    ("kind", "type_", "shape", "dtype"),
    [
        ("np", np.ndarray, (1, 6, 6, 3), np.float32),
        ("pt", torch.Tensor, (1, 3, 6, 6), torch.float32),
        ("numpy", np.ndarray, (1, 6, 6, 3), np.uint8),
    ],
)
def test_images_as_arrays(pipeline, kind, type_, shape, dtype):
    images = pipeline(["a"], output_type=kind)
    assert isinstance(images, type_)
    assert (tuple(images.shape), images.dtype) == (shape, dtype)
    reference = pixels(pipeline(["a"]))
    if kind == "np":
        assert np.allclose(images * 255, reference)
    if kind == "pt":
        assert np.allclose(images.permute(0, 2, 3, 1).numpy() * 255, reference)


def test_a_callback_and_a_bar(pipeline, capsys):
    seen = []
    pipeline(["a"], callback_on_step_end=lambda *given: seen.append(given))
    tokens = pipeline.generator.config.num_tokens
    assert seen == [(pipeline, step, step, {}) for step in range(tokens)]
    assert not capsys.readouterr().err
    pipeline.set_progress_bar_config(desc="drawing")
    pipeline(["a", "b"])
    shown = capsys.readouterr().err
    assert "drawing: 100%" in shown
    assert f"{2 * tokens}/{2 * tokens}" in shown
    pipeline.set_progress_bar_config(disable=True)
    pipeline(["a"])
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"class_labels": [1]}, "a pipeline takes no class_labels: the classes are its first argument"),
        ({"num_inference_steps": 50}, "an image takes one step for each of its tokens"),
        ({"height": 512}, "the model has one size, 'pipeline.image_size'"),
        ({"negative_prompt": "blurry"}, "write negative=, a class to guide away from, or a prompt"),
        ({"return_dict": False}, "it returns the images themselves"),
        ({"guidance_scal": 2.0}, "takes no guidance_scal (did you mean 'guidance_scale'?)"),
        ({"guidance_scale": 2.0, "cfg_scale": 2.0}, "are the same setting"),
        ({"guidance_scale": -1.0}, "cfg-scale must be from 0 to 1,000,000"),
        ({"num_images_per_prompt": 0}, "n and batch size to be at least 1, got n 0"),
        ({"num_images_per_prompt": 1.5}, "n must be a whole number, got 1.5"),
        ({"generator": [torch.Generator()] * 2}, "one for each of 1 images, got 2"),
        ({"n": 2, "num_images_per_prompt": 2}, "n and num_images_per_prompt are the same setting"),
        ({"output_type": "latent"}, "codes are what 'generate' yields"),
        ({"callback_on_step_end": 5}, "callback_on_step_end must be a function"),
        ({"generator": 7}, "expected one torch.Generator"),
    ],
)
def test_what_has_no_meaning_here(pipeline, arguments, said):
    with one_line_error(ConfigError) as caught:
        pipeline(["a"], **arguments)
    assert said in str(caught.value)


def test_a_prompt_is_told_how_prompts_are_written(pipeline):
    with one_line_error(ConfigError) as caught:
        pipeline(prompt="a rocket")
    assert "a pipeline takes no prompt: write prompts=['...'], for a model that takes captions" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("enable_model_cpu_offload", "write pipeline.to('cuda', torch.bfloat16)"),
        ("enable_sequential_cpu_offload", "write pipeline.to('cuda', torch.bfloat16)"),
        ("enable_attention_slicing", "Mamba blocks have no attention"),
        ("enable_xformers_memory_efficient_attention", "Mamba blocks have no attention"),
        ("enable_vae_slicing", "a call makes 'batch_size' images at once"),
        ("enable_vae_tiling", "a call makes 'batch_size' images at once"),
    ],
)
def test_methods_that_are_not_needed(pipeline, method, said):
    with one_line_error(AttributeError) as caught:
        getattr(pipeline, method)()
    assert str(caught.value).startswith(f"a pipeline has no {method}, and needs none: ")
    assert said in str(caught.value)
    assert not hasattr(pipeline, method)


def test_any_other_name_is_missing_as_usual(pipeline):
    with one_line_error(AttributeError, match="'Pipeline' object has no attribute 'unet'"):
        _ = pipeline.unet
