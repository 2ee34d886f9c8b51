"""What all commands share: help, lazy imports, and one line for every error."""

import os
import subprocess
import sys
import warnings
from importlib.metadata import entry_points

import pytest
import torch

import aimamba
from aimamba.cli import COMMANDS, main
from aimamba.cli import info as some_command
from aimamba.errors import DataError

REFUSALS = [
    (
        ["sampel"],
        [
            "unknown command 'sampel'",
            "did you mean 'sample'",
            "sample, complete, inpaint, interpolate, score, serve, studio, train, plan, encode, evaluate, ",
        ],
    ),
    (["help", "sampel"], ["unknown command 'sampel'", "did you mean 'sample'"]),
    (["--verbose"], ["unknown command '--verbose'", "expected one of"]),
    (["sample", "--modle", "x"], ["unknown option '--modle'", "did you mean '--model'", "aimamba sample --help"]),
    (["sample", "--model=x", "--clases=a"], ["unknown option '--clases'", "did you mean '--classes'"]),
    (["train", "x", "--step", "3"], ["unknown option '--step'", "did you mean '--steps'"]),
    (["sample", "planets"], ["sample: ", "unexpected argument 'planets'", "aimamba sample --help"]),
    (["sample", "--model", "x", "planets"], ["unexpected argument 'planets'"]),
    (["sample", "--model", "x", "-n", "many"], ["-n", "'many'"]),
    (["sample", "--model", "x", "--out"], ["--out", "expected one argument"]),
    (["convert", "x"], ["--out", "required"]),
    (["info"], ["MODEL", "required"]),
    (["reconstruct", "--model", "x"], ["IMAGE", "required"]),
]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_overview(aimamba, arguments):
    status, out, err = aimamba(*arguments)
    assert (status, err) == (0, "")
    assert all(f"  {name} " in out and text in out for name, text in COMMANDS.items())


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(aimamba, option):
    assert aimamba(option) == (0, f"aimamba {__import__('aimamba').__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(aimamba, command):
    status, out, err = aimamba(command, "--help")
    assert (status, err) == (0, "")
    assert aimamba("help", command) == (0, out, "")
    assert out.startswith(f"usage: aimamba {command} ")


@pytest.mark.parametrize(("arguments", "said"), REFUSALS)
def test_misspelt_commands(refusal, arguments, said):
    message = refusal(*arguments)
    for part in said:
        assert part in message


def test_a_value_may_begin_with_a_dash(aimamba, models):
    assert aimamba("sample", "--model", models / "pipeline", "--temperature", "-1").err.endswith("got -1.0\n")


def test_it_is_installed():
    [command] = entry_points(group="console_scripts", name="aimamba")
    assert command.load() is main


def as_module(*arguments):
    return subprocess.run([sys.executable, "-m", "aimamba", *arguments], capture_output=True, text=True, check=False)


def test_as_a_module():
    done = as_module("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"aimamba {aimamba.__version__}\n", "")
    done = as_module("info", "--nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("aimamba: info: unknown option '--nonsense'")


def test_no_help_loads_anything_heavy():
    program = """
import sys
from aimamba.cli import COMMANDS, main
main(["--help"])
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit:
        pass
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "PIL", "tqdm", "safetensors", "huggingface_hub", "jaxtyping", "dicebear", "resvg_py"}
    assert heavy.isdisjoint(done.stderr.split())


def test_a_reader_that_has_gone():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "aimamba", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""


def raising(monkeypatch, error):
    def run(arguments):
        raise error

    monkeypatch.setattr(some_command, "run", run)


def test_ctrl_c(aimamba, monkeypatch):
    raising(monkeypatch, KeyboardInterrupt())
    assert aimamba("info", "x") == (130, "", "aimamba: stopped\n")


def test_ctrl_c_that_a_module_in_c_turned_into_another_error(aimamba, monkeypatch):
    fault = ImportError("numpy.core.multiarray failed to import")
    fault.__cause__ = KeyboardInterrupt()
    raising(monkeypatch, fault)
    assert aimamba("info", "x") == (130, "", "aimamba: stopped\n")


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (MemoryError(), ""),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), ""),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), " on CUDA"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), " on MPS"),
    ],
)
def test_out_of_memory_is_one_line(refusal, monkeypatch, error, where):
    raising(monkeypatch, error)
    assert refusal("info", "x").startswith(f"out of memory{where}; use a smaller batch")


def test_a_message_of_two_lines_becomes_one(refusal, monkeypatch):
    raising(monkeypatch, DataError("one\ntwo"))
    assert refusal("info", "x") == "one two"


def test_a_full_disk(refusal, monkeypatch):
    raising(monkeypatch, OSError(28, "No space left on device", "there/0.png"))
    message = refusal("info", "x")
    assert message.startswith("there/0.png: No space left on device;")


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("no error of the system")])
def test_a_bug_keeps_its_traceback(aimamba, monkeypatch, error):
    raising(monkeypatch, error)
    with pytest.raises(type(error), match=str(error)):
        aimamba("info", "x")


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(aimamba, monkeypatch):
    monkeypatch.setattr(some_command, "run", lambda arguments: warnings.warn("beware", stacklevel=1))
    before = warnings.showwarning
    assert aimamba("info", "x") == (0, "", "aimamba: beware\n")
    assert warnings.showwarning is before


def test_escapes_in_names_do_not_reach_the_terminal(aimamba, refusal, pipeline):
    names = ["a\x1b[2Jb", "c\nd", "e\u202ef", "g\x9bh", "नमस्ते \u200d👩"]
    type(pipeline)(pipeline.tokenizer, pipeline.generator, names).save_pretrained("hostile")
    out = aimamba("info", "hostile").out
    assert r"a\x1b[2Jb, c\nd, e\u202ef, g\x9bh, नमस्ते \u200d👩".replace(r"\u200d", "\u200d") in out
    assert r"no\x1b[31m" in refusal("info", "no\x1b[31m")


@pytest.mark.parametrize("encoding", ["ascii", "cp932:strict"])
def test_printing_never_fails(encoding, pipeline):
    """Names that the terminal's encoding lacks are printed as escapes."""
    names = ["café", "кошки", "北京", "\N{FROG FACE}", "cat"]
    type(pipeline)(pipeline.tokenizer, pipeline.generator, names).save_pretrained("cafés")
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "aimamba", "info", "cafés"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    codec = encoding.partition(":")[0]
    assert ", ".join(names).encode(codec, "backslashreplace") in done.stdout


@pytest.mark.parametrize("encoding", ["cp932", "cp1251", "cp1252", "ascii"])
def test_output_is_escaped_where_the_encoding_lacks_it(encoding):
    """Characters that the terminal's encoding lacks are escaped, on stdout and on stderr."""
    program = """
import sys
from aimamba.cli import info, main
from aimamba.errors import DataError
def run(arguments):
    print("Fréchet Ж 猫")
    raise DataError("Fréchet Ж 猫")
info.run = run
sys.exit(main(["info", "x"]))
"""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=False)
    assert done.returncode == 2, done.stderr
    expected = "Fréchet Ж 猫".encode(encoding, "backslashreplace")
    assert done.stdout.strip() == expected
    assert done.stderr.strip() == b"aimamba: " + expected
