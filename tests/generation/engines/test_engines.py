"""The seam between the decoding loop and what computes its steps."""

import pytest
import torch

from aimamba.errors import ConfigError
from aimamba.generation import generate, make_engine
from aimamba.generation.engines import cuda_graphs
from aimamba.generation.engines.cuda_graphs import CudaGraphEngine


def test_plain_is_the_model_itself(make_aim):
    model = make_aim()
    assert make_engine(model, "plain") is model
    assert make_engine(make_aim(mixer="attention"), "auto").config.mixer == "attention"


def test_an_unknown_name(make_aim):
    with pytest.raises(ConfigError, match=r"engine must be one of auto, plain, .*got 'natve' \(did you mean 'native'"):
        make_engine(make_aim(), "natve")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it can be had here")
@pytest.mark.parametrize("name", ["cuda-graphs", "cuda-graphs-int8"])
def test_cuda_graphs_where_there_is_no_such_device(make_aim, name):
    with pytest.raises(ConfigError, match=f"'{name}' cannot .* the model is on cpu; choose the engine 'plain'"):
        make_engine(make_aim(), name)


def test_attention_has_no_8_bit_cache(make_aim, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "unsupported", lambda model: None)
    with pytest.raises(ConfigError, match=r"that of the mixer 'mamba2', .* has 'attention'; choose the engine 'cuda-g"):
        make_engine(make_aim(mixer="attention"), "cuda-graphs-int8")


@pytest.mark.gpu
def test_auto_on_a_cuda_device(make_aim):
    assert isinstance(make_engine(make_aim().cuda(), "auto"), CudaGraphEngine)
    assert make_engine(model := make_aim(state_size=6).cuda(), "auto") is model


def test_an_engine_may_be_handed_in(make_aim):
    model = make_aim()

    class Counted:
        steps = 0
        init_state = staticmethod(model.init_state)

        def step(self, inputs, state):
            self.steps += 1
            return model.step(inputs, state)

    engine = Counted()
    *_, codes = generate(model, torch.tensor([1]), engine=engine)
    assert engine.steps == model.config.num_tokens
    assert torch.equal(codes, [*generate(model, torch.tensor([1]), engine="plain")][-1])
