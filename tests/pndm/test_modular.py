"""The modular pipeline of docs/diffusers.md: its images are those of `solve`."""

import re

import diffusers
import pytest
import torch
from helpers import ROOT, last

from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import solve

(CODE,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "diffusers.md").read_text(), re.DOTALL)


@pytest.mark.skipif(not hasattr(diffusers, "ModularPipelineBlocks"), reason="diffusers has no modular pipelines yet")
@pytest.mark.parametrize("method", ["S-PNDM", "F-PNDM", "UniPC2-bh2"])
def test_a_block_with_a_method(method):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    ).eval()  # fmt: skip
    page = {}
    exec(CODE, page)
    x = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(3))
    found = page["sampler"](unet, method)(latents=x, num_inference_steps=8, output="latents")
    with torch.no_grad():
        expected = last(solve(method, lambda x, t: unet(x, t).sample, x, Schedule(), 8)).x
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
