"""``import aimamba`` is light: its names are imported when they are used."""

import subprocess
import sys

import pytest

import aimamba

HEAVY = "torch numpy PIL safetensors huggingface_hub tqdm jaxtyping dicebear resvg_py"


def loaded(statements: str) -> set[str]:
    """Top-level modules that a fresh Python has after these statements."""
    program = f"{statements}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statements",
    [
        "import aimamba",
        "import aimamba; dir(aimamba); aimamba.__version__",
        "from aimamba import ConfigError, DataError",
        "import aimamba.cli",
    ],
)
def test_nothing_heavy_is_loaded(statements):
    assert loaded(statements).isdisjoint(HEAVY.split())


def test_a_model_does_not_bring_the_programs_that_draw_avatars():
    names = loaded("from aimamba import AiM, Pipeline, VQModel, generate")
    assert "torch" in names
    assert names.isdisjoint({"dicebear", "resvg_py", "torchvision"})


def test_ray_is_not_imported_before_it_is_asked_for():
    names = loaded(
        "import aimamba.cluster.workers, aimamba.data.encoding, aimamba.evaluation.sources, aimamba.cli.many"
    )
    assert names.isdisjoint({"ray", "pyarrow", "pandas"})


@pytest.mark.parametrize("name", aimamba.__all__)
def test_every_name_resolves(name):
    thing = getattr(aimamba, name)
    assert thing.__name__ == name
    assert thing.__doc__


def test_the_names():
    assert aimamba.__all__ == sorted(aimamba.__all__)
    assert set(aimamba.__all__) <= set(dir(aimamba))
    namespace = {}
    exec("from aimamba import *", namespace)
    assert set(aimamba.__all__) <= namespace.keys()


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'aimamba' has no attribute 'Pipelin'"):
        aimamba.Pipelin  # noqa: B018
    assert not hasattr(aimamba, "torch")
