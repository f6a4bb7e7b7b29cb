"""docs/add-a-method.md: its code block is a complete method, and what the page says follows by itself does."""

import json
import math
import re

import pytest
import torch
from helpers import LINEAR, ROOT, image_files, last, made_up, mixture, reference_noise

import pndm
from pndm.config.load import load
from pndm.runner import plan
from pndm.runner.solver.solve import network_calls, steps_for
from pndm.runner.table import flow

PAGE = (ROOT / "docs" / "add-a-method.md").read_text()


@pytest.fixture(scope="module", autouse=True)
def ralston():
    """The method of the page, in the table while these tests run."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    names = {}
    exec(code, names)
    yield names["ralston"]
    del pndm.METHODS["Ralston"]


def experiment(steps):
    values = {"method": "Ralston", "sample_speed": steps}
    return load("digits.yml", {f"Sample.{name}": ("test", value) for name, value in values.items()})


def test_the_page_uses_public_names_alone():
    imported = re.findall(r"^from (\S+) import (.*)$", PAGE, re.M)
    assert [module for module, _ in imported] == ["pndm"]
    assert {name for _, names in imported for name in names.split(", ")} <= set(pndm.__all__)


def test_its_step_is_ralstons():
    x, (t, s) = reference_noise(), (700.0, 400.0)
    part = pndm.Pseudo(LINEAR)
    g1 = made_up(x, x.new_tensor([t]))
    g2 = made_up(part.transfer(x, g1, t, 500.0), x.new_tensor([500.0]))
    found = last(pndm.solve("Ralston", made_up, x, LINEAR, 1, times=[t, s]))
    torch.testing.assert_close(found.x, part.transfer(x, (g1 + 3 * g2) / 4, t, s), rtol=1e-12, atol=1e-12)


def test_its_order_is_two():
    (errors,) = flow.analytic(LINEAR, ("Ralston",), steps=(100, 200)).values()
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_its_calls_are_counted(steps):
    state = last(pndm.solve("Ralston", made_up, reference_noise(), LINEAR, steps))
    assert state.nfe == network_calls("Ralston", LINEAR, steps) == 2 * steps - 1
    assert steps_for("Ralston", 2 * steps - 1, LINEAR) == steps


def test_it_runs_as_a_scheduler():
    pytest.importorskip("diffusers")
    network, x = mixture(LINEAR, 3)
    scheduler = pndm.MethodScheduler(method="Ralston")
    scheduler.set_timesteps(10)
    assert len(scheduler.timesteps) == 19
    found = x
    for t in scheduler.timesteps:
        found = scheduler.step(network(found, t.to(x).expand(len(x))), t, found).prev_sample
    torch.testing.assert_close(found, last(pndm.solve("Ralston", network, x, LINEAR, 10)).x, rtol=1e-6, atol=1e-6)


def test_it_has_a_plan():
    lines = plan.lines(experiment(5))
    assert [line.calls for line in lines] == [2, 2, 2, 2, 1]
    assert [line.order for line in lines] == [2, 2, 2, 2, 1]
    assert plan.count_calls(experiment(5)) == 9


def test_it_samples_from_the_command_line(tiny, cli, tmp_path):
    flags = ["--method", "Ralston", "--sample_speed", 5]
    status, out, err = cli(*tiny.flags(tmp_path / "run", *flags))
    assert (status, len(image_files(tmp_path / "run"))) == (0, 10), err
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (record["method"], record["steps"], record["nfe"]) == ("Ralston", 5, 9)
    status, out, err = cli(*tiny.flags(tmp_path / "plan", *flags, "--plan"))
    assert (status, err) == (0, "")
    assert "calls an image    9" in out
    status, _, err = cli(*tiny.flags(tmp_path / "not", *flags, "--clip"))
    assert (status, err.count("\n")) == (2, 1)
    assert "method Ralston takes no option clip; these do: DDIM, DPM-Solver++2M" in err


def test_the_other_kinds_of_the_page(ralston):
    """A multistep method that starts with the step; a class of one's own."""

    class Mean(pndm.Method):
        """φ along ε, with half of the noise of the step's start drawn anew: a method made up."""

        def draws(self, **options):
            return True

        def step(self, x, memory, schedule, grid, number, **options):
            t, s = grid[number : number + 2]
            eps = yield pndm.Query(x, t)
            noise = yield pndm.Draw(x)
            return pndm.Pseudo(schedule).transfer(x, (eps + noise) / 2, t, s), 1, None

    x = reference_noise()
    added = {"Ralston-AB2": pndm.Multistep(order=2, start=ralston, part=pndm.Pseudo), "Mean": Mean()}
    pndm.METHODS.update(added)
    try:
        assert last(pndm.solve("Ralston-AB2", made_up, x, LINEAR, 6)).nfe == 7
        assert last(pndm.solve("Mean", made_up, x, LINEAR, 6, noise=x.mul)).nfe == 6
        with pytest.raises(ValueError, match="Mean draws noise"):
            pndm.solve("Mean", made_up, x, LINEAR, 6)
    finally:
        for name in added:
            del pndm.METHODS[name]


def test_an_option_is_declared_once():
    class Bounded(pndm.Data):
        options = frozenset({"bound"})

        def __init__(self, schedule, bound):
            super().__init__(schedule)
            self.bound = bound

        def gradient(self, x, t):
            data = yield from super().gradient(x, t)
            return data.clamp(-self.bound, self.bound)

    pndm.OPTIONS["bound"] = pndm.Option(2.0, "bound of the predicted image", {"gt": 0})
    pndm.METHODS["Bounded"] = pndm.Multistep(order=1, part=Bounded)
    try:
        x = 4 * reference_noise()
        for options, bound in (({}, 2.0), ({"bound": 0.5}, 0.5)):
            assert last(pndm.solve("Bounded", made_up, x, LINEAR, 6, **options)).x.abs().max() <= bound + 1e-12
        with pytest.raises(ValueError, match="bound is -1, it must be a number above 0"):
            pndm.solve("Bounded", made_up, x, LINEAR, 6, bound=-1)
        with pytest.raises(ValueError, match="takes no option bound; these do: Bounded"):
            pndm.solve("F-PNDM", made_up, x, LINEAR, 6, bound=1)
    finally:
        del pndm.METHODS["Bounded"], pndm.OPTIONS["bound"]
