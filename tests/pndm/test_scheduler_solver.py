"""`MethodScheduler` with a solver file: the images of `solve`, and a configuration that can be saved."""

import diffusers
import numpy as np
import pytest
import torch
from helpers import LINEAR, last, made_up, reference_noise

from pndm.config.errors import InputError
from pndm.config.load import load_solver
from pndm.runner.solver.solve import solve
from pndm.scheduler import MethodScheduler

FILE = {
    "method": "searched",
    "calls": 3,
    "times": [999, 400, 20, -1],
    "weights": [[1.0], [1.5, -0.5], [1.8, -1.0, 0.2]],
    "told": [990.0, 410.5, 30.0],
    "schedule": {"type": "linear"},
}


def images(scheduler):
    scheduler.set_timesteps(50)
    x = reference_noise()
    for t in scheduler.timesteps:
        x = scheduler.step(made_up(x, t.to(x.dtype).expand(len(x))), t, x).prev_sample
    return x


def test_a_scheduler_makes_the_images_of_solve_in_the_files_calls():
    scheduler = MethodScheduler(solver=FILE)
    found = images(scheduler)
    assert scheduler.timesteps.tolist() == FILE["told"]
    line = load_solver(FILE).line
    known = last(solve(line, made_up, reference_noise(), LINEAR, 1, times=FILE["times"])).x
    assert torch.allclose(found, known, atol=1e-12)


def test_a_saved_scheduler_needs_no_file(tmp_path):
    scheduler = MethodScheduler(solver=FILE)
    scheduler.save_pretrained(tmp_path)
    assert torch.equal(images(MethodScheduler.from_pretrained(tmp_path)), images(scheduler))


def test_other_schedules_and_times_are_refused():
    with pytest.raises(InputError, match="another noise schedule"):
        MethodScheduler(solver=FILE, beta_end=0.012)
    with pytest.raises(InputError, match="calls is 4"):
        MethodScheduler(solver=FILE | {"calls": 4})
    scheduler = MethodScheduler(solver=FILE)
    with pytest.raises(ValueError, match="a solver file says the times"):
        scheduler.set_timesteps(timesteps=[900, 100])
    scheduler.set_timesteps(3)
    x = reference_noise()
    with pytest.raises(ValueError, match="eta"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=0.5)


def test_x_is_at_the_times_of_the_file_whatever_the_network_is_told():
    scheduler = MethodScheduler(solver=FILE)
    scheduler.set_timesteps(3)
    levels = torch.from_numpy(LINEAR.alpha_cumprod(np.array(FILE["times"][:-1], float)))
    assert torch.allclose(scheduler.sigmas[:-1].double(), (1 / levels - 1).sqrt())
    x, eps = reference_noise(), made_up(reference_noise(), torch.full((1,), 500.0))
    t, later, _ = scheduler.timesteps
    predicted = scheduler.step(eps, t, x).pred_original_sample
    assert torch.allclose(predicted, (x - (1 - levels[0]).sqrt() * eps) / levels[0].sqrt())
    noisy = levels[1].sqrt() * x + (1 - levels[1]).sqrt() * eps
    assert torch.allclose(scheduler.add_noise(x, eps, later[None]), noisy)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_a_file_takes_the_place_of_another_schedulers_method_and_times(kind):
    config = getattr(diffusers, kind)(beta_end=0.02).config
    scheduler = MethodScheduler.from_config(config, solver=FILE)
    assert torch.equal(images(scheduler), images(MethodScheduler(solver=FILE)))
    by_method = MethodScheduler.from_config(config, method="DDIM")
    assert torch.equal(images(MethodScheduler.from_config(by_method.config, solver=FILE)), images(scheduler))


def test_a_method_takes_the_place_of_a_file():
    scheduler = MethodScheduler.from_config(MethodScheduler(solver=FILE).config, method="DDIM")
    assert torch.equal(images(scheduler), images(MethodScheduler(method="DDIM")))
    for make in (MethodScheduler, lambda **both: MethodScheduler.from_config(MethodScheduler().config, **both)):
        with pytest.raises(ValueError, match="takes the place of the method; method 'DDIM' cannot be given with it"):
            make(method="DDIM", solver=FILE)
