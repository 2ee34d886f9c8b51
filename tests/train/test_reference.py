"""The list of all settings; that its page is current is tested with the command."""

import dataclasses

import pytest

from aimamba.models import AiMConfig, VQConfig
from aimamba.models.text import TextConfig
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.recipe import DataConfig, Recipe
from aimamba.train.reference import describe_fields, settings_page
from aimamba.train.settings import FitConfig
from aimamba.train.tokenizer import TokenizerTaskConfig

CONFIGS = (Recipe, DataConfig, FitConfig, VQConfig, AiMConfig, TextConfig, TokenizerTaskConfig, GeneratorTaskConfig)


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_setting_has_a_sentence(cls):
    described = describe_fields(cls)
    assert list(described) == [field.name for field in dataclasses.fields(cls)]
    for name, meaning in described.items():
        assert meaning.endswith("."), name
        assert meaning[0].isupper() or meaning[0] == "`", name


def test_type_and_default():
    page = settings_page()
    for line in (
        "- `steps` (whole number, required): Total number of weight updates.",
        "- `seed` (whole number, default `0`): Seed of the initial weights, the order of the images and the randomness",
        '- `keep` ("best" or "last", default `"best"`): Which model is the result:',
        "- `per_class` (whole number, not set): Images of each class to train on; by default all.",
        "- `betas` (list of numbers, default `[0.9, 0.95]`): ",
        '- `compile` (true or false or "blocks", default `false`): ',
        "- `preset` (text, not set): A shape by name, over which the settings below go: aim-b, aim-l, aim-xl, aim-1b.",
        'or "embeddings" or "adaln" or "blocks" or a list of the last 5, default `"auto"`): The parts that are trained',
    ):
        assert line in " ".join(page.split())


def test_a_field_that_is_not_described_would_be_an_error():
    @dataclasses.dataclass
    class Undescribed:
        """A config.

        Attributes:
            one: The first,
                on two lines: with a colon.
        """

        one: int = 1
        two: int = 2

    assert describe_fields(Undescribed) == {"one": "The first, on two lines: with a colon."}
