"""The methods against the released code's numbers, their theory, SciPy, and each other."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import DATA, LINEAR, asked, last, made_up, mixture, reference_noise
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from pndm.runner.solver.events import NotFinite, Query, Step
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import solve, trajectory
from pndm.runner.solver.transfer import phi

REFERENCE = np.load(DATA / "trajectories.npz")
FIXED = ["DDIM", "S-PNDM", "F-PNDM", "FON"]
FIFTEEN = [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500]


@pytest.mark.parametrize("name", [name for name in REFERENCE.files if name.startswith(("published", "exact"))])
def test_trajectory_equals_the_reference(name):
    profile, kind, method, steps = name.split(".")
    times = []

    def network(x, t):
        times.append(t[0].item())
        return made_up(x, t)

    state = last(solve(method, network, reference_noise(), Schedule(kind), int(steps), profile))
    np.testing.assert_allclose(state.x.numpy(), REFERENCE[name], rtol=1e-9, atol=1e-9 * np.abs(REFERENCE[name]).max())
    assert times == REFERENCE[f"calls.{method}.{steps}"].tolist()
    assert state.nfe == len(times)


@pytest.mark.parametrize("method, extra, least", [("DDIM", 0, 1), ("S-PNDM", 1, 2), ("F-PNDM", 9, 4), ("FON", 9, 4)])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 30, 50, 60, 333, 599, 999, 1000])
def test_exact_takes_the_steps_and_the_calls_it_promises(method, extra, least, steps):
    x = torch.full((1, 1), 0.3, dtype=torch.float64)
    states = list(solve(method, made_up, x, LINEAR, steps))
    assert len(states) == steps
    assert states[-1].t == -1
    if steps >= least:
        assert states[-1].nfe == steps + extra


@pytest.mark.slow
def test_exact_runs_every_count_with_a_finite_end():
    x = torch.full((1, 1), 0.3, dtype=torch.float64)
    for method in FIXED:
        for steps in [*range(1, 40), *range(40, 1001, 37), 998, 999, 1000]:
            assert last(solve(method, made_up, x, LINEAR, steps)).x.isfinite().all(), (method, steps)


@pytest.mark.parametrize("steps", FIFTEEN)
def test_grids_of_both_profiles_agree_where_the_released_one_is_right(steps):
    assert asked("DDIM", steps, "exact") == asked("DDIM", steps, "published")


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 30, 1000])
def test_exact_asks_only_about_times_that_the_network_knows(method, steps):
    times = asked(method, steps)
    assert min(times) >= 0
    assert max(times) <= 999


def test_published_runs_the_fifteen_counts_and_refuses_every_other():
    x = torch.zeros(1, 1)
    for steps in range(1, 1001):
        if steps in FIFTEEN:
            trajectory("DDIM", x, LINEAR, steps, "published")
        else:
            with pytest.raises(ValueError, match="1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500"):
                trajectory("DDIM", x, LINEAR, steps, "published")


def test_published_reads_alpha_one_index_late_and_cuts_half_steps():
    """Quirks 2 and 3 of the released code, where no reference trajectory reaches: half steps of a skip of 125."""
    x = torch.full((1, 1), 0.7, dtype=torch.float64)
    times = []

    def network(x, t):
        times.append(t.item())
        return torch.full_like(x, 0.2)

    alphas = LINEAR.alphas_cumprod
    state = next(iter(solve("F-PNDM", network, x, LINEAR, 8, "published")))
    assert times == [875, 812.5, 812.5, 750]
    np.testing.assert_allclose(state.x, phi(x, torch.full_like(x, 0.2), alphas[876], alphas[751]), rtol=1e-12)


def test_published_cuts_half_steps_towards_zero():
    """A Runge–Kutta step from t = 0 to −1: its half steps, at −0.5, have ᾱ₁, and its end ᾱ₀."""
    x = torch.full((1, 1), 0.7, dtype=torch.float64)
    times, seen = [], []

    def network(x, t):
        times.append(t.item())
        seen.append(x.clone())
        return torch.full_like(x, 0.2)

    last(solve("F-PNDM", network, x, LINEAR, 1, "published"))
    alphas, eps = LINEAR.alphas_cumprod, torch.full_like(x, 0.2)
    assert times == [0, -0.5, -0.5, -1]
    assert torch.equal(seen[1], seen[0])  # from ᾱ₁ to ᾱ₁
    torch.testing.assert_close(seen[3], phi(x, eps, alphas[1], alphas[0]), rtol=1e-12, atol=0)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-9, 1, exclude_max=True), st.floats(1e-9, 1), *2 * [st.floats(-3, 3, allow_subnormal=False)])
def test_phi_carries_data_exactly_when_eps_is_exact(alpha_t, alpha_s, data, eps):
    start = math.sqrt(alpha_t) * data + math.sqrt(1 - alpha_t) * eps
    end = math.sqrt(alpha_s) * data + math.sqrt(1 - alpha_s) * eps
    assert phi(start, eps, alpha_t, alpha_s) == pytest.approx(end, abs=1e-12 * (1 + math.sqrt(alpha_s / alpha_t)))


def test_phi_keeps_its_digits_between_close_levels():
    """In exact rational arithmetic the weight of ε is known; the textbook form loses half of the digits here."""
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    t, s = Decimal("0.5"), Decimal("0.5") + Decimal(2) ** -40
    weight = (1 - s).sqrt() - (s * (1 - t) / t).sqrt()
    assert phi(0.0, 1.0, float(t), float(s)) == pytest.approx(float(weight), rel=1e-14)


@pytest.mark.parametrize(
    "method, expected",
    [("DDIM", 1), ("S-PNDM", 2), ("F-PNDM", 2), ("FON", 4)],
)
@pytest.mark.parametrize("components", [1, 3])
def test_order_of_convergence(method, expected, components):
    """Slope of error against step size at t = 200, from exact starting points on the flow of a Gaussian mixture."""
    network, noise = mixture(LINEAR, components)
    end = network.flow(noise, 999, 200)
    counts = [50, 100, 200] if method == "FON" else [100, 200, 400]
    errors = []
    for steps in counts:
        start = network.flow(noise, 999, 1000 - 1000 / steps)
        states = solve(method, network, start, LINEAR, steps)
        x = next(state.x for state in states if abs(state.t - 200) < 1e-9)
        errors.append((x - end).square().mean().sqrt().item())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(expected, abs=0.25), (errors, slopes)


def test_fewer_calls_for_the_same_error():
    """What the methods are for: at 50 steps F-PNDM's error is a small part of DDIM's."""
    network, noise = mixture(LINEAR, 3)
    start, end = network.flow(noise, 999, 980), network.flow(noise, 999, 0)
    error = {m: (last(solve(m, network, start, LINEAR, 50)).x - end).square().mean().sqrt() for m in FIXED}
    assert error["F-PNDM"] < error["S-PNDM"] < error["DDIM"] / 2


@pytest.mark.parametrize("kind", ["linear", "quad", "cosine"])
@pytest.mark.parametrize("components", [1, 3])
def test_pf_error_follows_its_tolerance(kind, components):
    schedule = Schedule(kind)
    network, noise = mixture(schedule, components)
    end = network.flow(noise, 999, 0)
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        state = last(solve("PF", network, noise, schedule, 50, rtol=tolerance, atol=tolerance))
        errors.append((state.x - end).abs().max().item())
    assert errors[0] < 0.1
    assert errors[1] < 2e-3
    assert errors[2] < 1e-4
    assert np.all(np.diff(errors) < 0)


def test_pf_takes_the_very_steps_of_scipy_for_each_image_on_its_own():
    network, noise = mixture(LINEAR, 3)
    rtol, atol = 1e-6, 1e-7
    states = list(solve("PF", network, noise, LINEAR, 50, rtol=rtol, atol=atol))
    calls = 0
    for i in range(len(noise)):

        def slope(t, y):
            alpha, log_slope = LINEAR.alpha_cumprod(t), LINEAR.log_alpha_cumprod(t, nu=1)
            eps = network(torch.from_numpy(y)[None], torch.tensor([t], dtype=torch.float64))[0].numpy()
            return log_slope / 2 * (y - eps / np.sqrt(1 - alpha))

        theirs = solve_ivp(slope, (999, 0), noise[i].numpy(), method="RK45", rtol=rtol, atol=atol)
        mine = np.unique([state.t[i] for state in states])[::-1]
        np.testing.assert_allclose(mine, theirs.t[1:], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(states[-1].x[i], theirs.y[:, -1], rtol=1e-9, atol=1e-12)
        calls += theirs.nfev
    assert states[-1].nfe == calls / len(noise)


def test_pf_image_does_not_depend_on_its_batch():
    network, noise = mixture(LINEAR, 3)
    together = last(solve("PF", network, noise, LINEAR, 50)).x
    for i in range(len(noise)):
        alone = last(solve("PF", network, noise[i : i + 1], LINEAR, 50)).x
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-12)


def test_pf_published_is_scipy_on_the_whole_batch_with_the_linear_closed_form():
    schedule = Schedule("linear")
    network, noise = mixture(schedule, 3)
    first, final = schedule.betas[0], schedule.betas[-1]

    def slope(tau, y):
        x = torch.from_numpy(y.reshape(noise.shape))
        beta = 1000 * (first + tau * (final - first))
        alpha = np.exp(-1000 * (tau * first + tau**2 / 2 * (final - first)))
        eps = network(x, torch.full((len(x),), 999 * tau, dtype=torch.float64))
        return (-beta / 2 * (x - eps / np.sqrt(1 - alpha))).numpy().ravel()

    theirs = solve_ivp(slope, (1, 1e-3), noise.numpy().ravel(), method="RK45", rtol=1e-5, atol=1e-5)
    state = last(solve("PF", network, noise, schedule, 50, "published"))
    np.testing.assert_allclose(state.x.numpy().ravel(), theirs.y[:, -1], rtol=1e-9, atol=1e-11)
    assert state.nfe == theirs.nfev
    np.testing.assert_allclose(state.t, 0.999, rtol=1e-12)  # in training steps, as of every method


def test_pf_says_where_the_network_is_not_finite():
    noise = torch.ones(2, 3, dtype=torch.float64)
    for eps, since in ((0.0, r"[5-9]\d\d.* and [0-4]?\d?\d"), (1.0, "999 and ")):
        with pytest.raises(NotFinite, match=f"between t = {since}"):
            last(solve("PF", lambda x, t, e=eps: torch.where(t.view(-1, 1) < 500, torch.nan, e) * x, noise, LINEAR, 50))


def test_pf_says_where_the_flow_cannot_be_followed():
    """Before t = 500 ε is so large that no step is small enough."""
    noise, seen = torch.ones(2, 3, dtype=torch.float64), []

    def network(x, t):
        seen.append(len(x))
        assert len(seen) < 2000, "the steps do not end"
        return torch.where(t.view(-1, 1) < 500, 1e30, 0.0) * x

    with pytest.raises(NotFinite, match=r"^the step size vanished at t = 500\b.*to rtol 1e-05"):
        last(solve("PF", network, noise, LINEAR, 50))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_input_are_kept(method, dtype):
    noise = reference_noise().to(dtype)
    before = noise.clone()
    network = lambda x, t: made_up(x, t).to(torch.bfloat16)  # noqa: E731
    state = last(solve(method, network, noise, LINEAR, 10, noise=torch.zeros_like(noise).mul))
    assert state.x.dtype == dtype
    assert torch.equal(noise, before)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_images_in_a_batch_does_not_matter(method):
    noise = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([3, 0, 4, 1, 2])
    straight = last(solve(method, made_up, noise, LINEAR, 10, noise=noise.mul)).x
    shuffled = last(solve(method, made_up, noise[order], LINEAR, 10, noise=noise[order].mul)).x
    torch.testing.assert_close(shuffled, straight[order], rtol=1e-12, atol=1e-12)


def test_a_method_can_be_driven_from_outside():
    """Without `solve`: the same queries and the same end."""
    noise = reference_noise()
    events, eps, x = trajectory("S-PNDM", noise, LINEAR, 5), None, None
    for _ in range(5 + 6):
        event = events.send(eps)
        eps = made_up(event.x, event.x.new_full((2,), event.t)) if isinstance(event, Query) else None
        x = event.x if isinstance(event, Step) else x
    torch.testing.assert_close(x, last(solve("S-PNDM", made_up, noise, LINEAR, 5)).x, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "DDPM+"}, "DDIM, S-PNDM, F-PNDM, FON, PF"),
        ({"profile": "fast"}, "exact, published"),
        ({"steps": 0}, "from 1 to 1000"),
        ({"steps": -3}, "from 1 to 1000"),
        ({"steps": 1001}, "from 1 to 1000"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": "abc"}, "whole number"),
        ({"rtol": 1e-3}, "takes no option rtol"),
        ({"method": "PF", "rtol": 0.0}, "rtol is 0.0, it must be a number between 0 and 1"),
        ({"method": "PF", "profile": "published", "rtol": 1e-3}, "fixed tolerances"),
        ({"x": torch.zeros(1, 2, dtype=torch.float16)}, "float32 or float64"),
        ({"method": "PF", "atol": math.inf}, "atol is inf, it must be a number above 0"),
        ({"x": torch.zeros(1, 2, dtype=torch.int64)}, "float32 or float64"),
        ({"x": np.zeros((1, 2))}, "x is ndarray, it must be a tensor"),
        ({"x": None}, "x is NoneType, it must be a tensor"),
        ({"x": torch.zeros(())}, r"x is \(\), it must be \(n, …\)"),
        ({"x": torch.zeros(0, 2)}, "one image or more"),
        ({"schedule": [0.1, 0.2]}, "schedule is a list, it must be a Schedule"),
        ({}, "network is None, it must be a function"),
        ({"network": made_up, "noise": 3}, "noise is 3, it must be a function"),
    ],
)
def test_wrong_arguments_are_refused_before_the_network_is_called(change, said):
    arguments = {"method": "F-PNDM", "network": None, "x": torch.zeros(1, 2), "schedule": LINEAR, "steps": 10} | change
    with pytest.raises(ValueError, match=said):
        solve(**arguments)


@pytest.mark.parametrize("method", ["DDIM", "F-PNDM", "PF"])
@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda x, t: x[:, :1], r"the network returned a tensor \(2, 1, 4, 4\), it must be like x, \(2, 3, 4, 4\)"),
        (lambda x, t: x.sum(), r"the network returned a tensor \(\), it must be like x"),
        (lambda x, t: x.numpy(), "the network returned ndarray, it must return a tensor like x"),
        (lambda x, t: None, "the network returned NoneType"),
    ],
)
def test_eps_must_be_like_x(method, answer, said):
    with pytest.raises(ValueError, match=said):
        last(solve(method, answer, reference_noise(), LINEAR, 5))


def test_noise_must_be_like_x():
    with pytest.raises(ValueError, match=r"noise\(0\) returned a tensor \(\), it must be like x, \(2, 3, 4, 4\)"):
        last(solve("DDPM", made_up, reference_noise(), LINEAR, 5, noise=lambda step: torch.zeros(())))


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_broadcasts_the_time_gets_one(method):
    """The states are the same; only PF, whose images are at times of their own, gives each image its t."""
    shapes = []

    class Network:
        broadcasts_time = True

        def __call__(self, x, t):
            shapes.append(tuple(t.shape))
            return made_up(x, t)

    x = reference_noise()
    one = last(solve(method, Network(), x, LINEAR, 5, noise=x.mul))
    each = last(solve(method, made_up, x, LINEAR, 5, noise=x.mul))
    assert torch.equal(one.x, each.x)
    assert one.nfe == each.nfe
    assert set(shapes) <= ({(1,), (2,)} if method == "PF" else {(1,)})


def test_pf_of_one_training_step_stays_where_it_starts():
    schedule, x = Schedule(diffusion_step=1, beta_start=1e-2, beta_end=1e-2), torch.ones(2, 1)
    (state,) = solve("PF", lambda x, t: x, x, schedule, 1)
    assert torch.equal(state.x, x) and np.max(state.t) == 0
