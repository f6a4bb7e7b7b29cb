"""Inception's weights, at random."""

from unittest import mock

import pytest
import torch


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Random weights of pytorch-fid's Inception, that keep the scale of what passes through, as in a hub's cache."""
    package = pytest.importorskip("pytorch_fid.inception")
    torch.manual_seed(0)
    loading = (
        mock.patch.object(torch.nn.Module, "load_state_dict"),
        mock.patch.object(package, "load_state_dict_from_url"),
    )
    with loading[0], loading[1]:
        network = package.fid_inception_v3()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    file = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints" / package.FID_WEIGHTS_URL.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    return file
