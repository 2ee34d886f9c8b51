"""What users of Hugging Face's diffusers write in a call, as the settings that it stands for here.

Each argument either works or is refused with one line that says what to write instead; docs/habits.md lists them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from aimamba.config import from_mapping, to_mapping
from aimamba.errors import ConfigError, suggest
from aimamba.generation import SamplingConfig

_ONE_SIZE = "the model has one size, 'pipeline.image_size'; resize the images"
_ONE_STEP = "an image takes one step for each of its tokens"
_MEMORY = "a call makes 'batch_size' images at once, so a smaller one takes less memory"
_OFFLOAD = "AiM-1B takes 2.7 GB in bfloat16; write pipeline.to('cuda', torch.bfloat16)"
_NO_ATTENTION = "Mamba blocks have no attention"
_INSTEAD = {
    "class_labels": "the classes are its first argument",
    "prompt": "write prompts=['...'], for a model that takes captions; classes are the first argument",
    "negative_prompt": "write negative=, a class to guide away from, or a prompt if the model takes captions",
    "num_inference_steps": _ONE_STEP,
    "timesteps": _ONE_STEP,
    "sigmas": _ONE_STEP,
    "height": _ONE_SIZE,
    "width": _ONE_SIZE,
    "eta": "sampling has 'temperature', 'top_k' and 'top_p'",
    "latents": "give 'seed' or 'generator'; images whose first codes are known come from 'complete'",
    "return_dict": "it returns the images themselves",
    "callback": "write callback_on_step_end=f, called as f(pipeline, step, step, {})",
    "callback_steps": "write callback_on_step_end=f, called as f(pipeline, step, step, {})",
}
_METHODS = {
    "enable_model_cpu_offload": _OFFLOAD,
    "enable_sequential_cpu_offload": _OFFLOAD,
    "enable_attention_slicing": _NO_ATTENTION,
    "enable_xformers_memory_efficient_attention": _NO_ATTENTION,
    "enable_vae_slicing": _MEMORY,
    "enable_vae_tiling": _MEMORY,
}
_SETTINGS = tuple(field.name for field in fields(SamplingConfig))
_HABITS = ("guidance_scale", "generator", "num_images_per_prompt", "callback_on_step_end")

Settings = SamplingConfig | Mapping[str, Any]


def check_habits(habits: Mapping[str, Any], n: object, output_type: str) -> None:
    """Refuse arguments of a call that have no meaning here.

    Args:
        habits: Keyword arguments.
        n: The number of images of each class as it was given otherwise.
        output_type: The type of the output.

    Raises:
        ConfigError: There is one; the message says what to write instead, or suggests what was meant.
    """
    for name in habits:
        if name in _INSTEAD:
            raise ConfigError(f"a pipeline takes no {name}: {_INSTEAD[name]}")
        if name not in (*_HABITS, *_SETTINGS):
            raise ConfigError(f"a pipeline takes no {name}{suggest(name, [*_HABITS, *_SETTINGS])}")
    if output_type == "latent":
        raise ConfigError("a call returns images; codes are what 'generate' yields, or 'encode' makes of images")
    if "num_images_per_prompt" in habits and n != 1:
        raise ConfigError("n and num_images_per_prompt are the same setting; leave one out")
    if not callable(habits.get("callback_on_step_end", callable)):
        raise ConfigError("callback_on_step_end must be a function, called as f(pipeline, step, step, {})")
    if "guidance_scale" in habits and "cfg_scale" in habits:
        raise ConfigError("guidance_scale and cfg_scale are the same setting; leave one out")


def check_method(name: str) -> None:
    """Refuse a method that a pipeline of diffusers has and that is not needed here.

    Args:
        name: A name that a pipeline does not have.

    Raises:
        AttributeError: It is one of them; the message says what to write instead. ``hasattr`` is False, as it should.
    """
    if name in _METHODS:
        raise AttributeError(f"a pipeline has no {name}, and needs none: {_METHODS[name]}")


def with_habits(config: Settings | Sequence[Settings], habits: Mapping[str, Any]) -> Settings | list[Settings]:
    """Return settings of sampling in which those among the keyword arguments of a call are changed.

    Args:
        config: The settings, for all classes or one for each.
        habits: The arguments.
    """
    changes = {name: value for name, value in habits.items() if name in _SETTINGS}
    if "guidance_scale" in habits:
        changes["cfg_scale"] = habits["guidance_scale"]
    if isinstance(config, Sequence) and not isinstance(config, str):
        return [_changed(each, changes) for each in config]
    return _changed(config, changes)


def _changed(config: Settings, changes: Mapping[str, Any]) -> Settings:
    if not changes or not isinstance(config, SamplingConfig | Mapping):
        return config
    before = to_mapping(config) if isinstance(config, SamplingConfig) else config
    return from_mapping(SamplingConfig, {**before, **changes}, where="pipeline")


def seeds_of(generator: Any, images: int) -> list[int]:
    """Return a seed for each image: the next numbers of one generator, or of one for each image.

    Raises:
        ConfigError: There are fewer or more generators than images, or it is none.
    """
    each = [generator] * images if isinstance(generator, torch.Generator) else generator
    if not isinstance(each, Sequence) or not all(isinstance(one, torch.Generator) for one in each):
        raise ConfigError(f"expected one torch.Generator, or a list of them, got {type(generator).__name__}")
    if len(each) != images:
        raise ConfigError(f"expected one generator, or one for each of {images} images, got {len(each)}")
    return [int(torch.randint(0, 2**63 - 1, (), generator=one, device=one.device)) for one in each]


def after_steps(callback: Callable[..., Any], pipeline: object) -> Callable[[int, int], None]:
    """Return a ``Progress`` that calls ``callback(pipeline, step, step, {})``, as diffusers does after a step."""
    step = -1

    def call(done: int, total: int) -> None:
        nonlocal step
        step += 1
        callback(pipeline, step, step, {})

    return call
