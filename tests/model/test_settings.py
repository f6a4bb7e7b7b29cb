"""What a `Model` section says that no network can be: each message names the key."""

import pytest
import torch
from helpers import published_section

from pndm.config.errors import InputError
from pndm.config.load import load
from pndm.model import load_model
from pndm.model.settings import settings_of


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ddim_small", {"ch": 16}, "Model.ch is 16; a multiple of 32 is needed"),
        ("ddim_small", {"ch": 2, "norm_groups": 1}, "Model.ch is 2; at least 4 is needed"),
        ("iddpm_small", {"model_channels": 48}, "Model.model_channels is 48; a multiple of 32 is needed"),
        ("pf_small", {"nf": 16}, "Model.nf is 16; a multiple of 32 is needed"),
        ("pf_deep_small", {"nf": 6}, "Model.nf is 6; a multiple of 4 is needed"),
        ("ddim_small", {"out_ch": 2}, "Model.out_ch is 2; ε of 3 channels needs as many"),
        ("iddpm_small", {"out_channels": 1}, "Model.out_channels is 1; ε of 3 channels needs as many"),
        ("iddpm_small", {"num_heads": 7}, "Model.num_heads is 7; it must divide the 64 channels of level 1"),
        ("iddpm_small", {"num_heads_upsample": 0}, "Model.num_heads_upsample is 0; it must divide the 64 channels of"),
        ("ddim_small", {"image_size": 18, "ch_mult": [1, 2, 2]}, "Model.image_size 18 cannot be halved 2 times"),
    ],
)
def test_the_key_is_named(name, changes, message):
    with pytest.raises(InputError) as caught:
        settings_of(published_section(name) | changes)
    assert str(caught.value).startswith(message)
    assert message.startswith(caught.value.keys[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("model/digits.safetensors",), "a Model section comes first"),
        ((load("digits.yml"),), "a Model section is a mapping of keys, not of type Experiment"),
        ((5,), "a Model section is a mapping of keys, not of type int"),
        (({"struc": "DDIM", "ch": 10**9},), "Model.image_size is missing"),
        ((None, None, "cuda:99" if not torch.cuda.is_available() else "xpu"), "is not there"),
        ((None, None, "gpu"), "device 'gpu' is not one of PyTorch's"),
    ],
)
def test_wrong_arguments_of_load_model(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_model(*arguments)
