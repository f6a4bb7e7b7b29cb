"""The methods that came after the paper's: their orders, weights, grids, counts of network calls, noise, limits."""

import functools
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import LINEAR, asked, last, made_up, mixture, reference_noise
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from pndm.model.guidance import Guided
from pndm.runner.solver import weights
from pndm.runner.solver.analytic import GaussianMixture
from pndm.runner.solver.events import Step
from pndm.runner.solver.grid import SPACINGS
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import calls, drive, network_calls, solve, steps_for, trajectory
from pndm.runner.solver.transfer import Data, Pseudo, phi

COSINE = Schedule("cosine")
FIXED = [name for name, method in METHODS.items() if not method.adaptive]
LATER = [name for name in FIXED if name not in ("DDIM", "S-PNDM", "F-PNDM", "FON")]
ORDERS = {
    **dict.fromkeys(["iPNDM2", "iPNDM3", "iPNDM4"], 2),
    "DEIS-tAB1": 2,
    "DEIS-tAB2": 3,
    "DEIS-tAB3": 4,
    "DEIS-rhoAB1": 2,
    "DEIS-rhoAB2": 3,
    "DEIS-rhoAB3": 4,
    "DEIS-logrhoAB1": 2,
    "DEIS-logrhoAB2": 3,
    "Heun": 2,
    "DPM-Solver-2S": 2,
    "DPM-Solver-3S": 3,
    **dict.fromkeys(["DPM-Solver-2M", "DPM-Solver-3M", "DPM-Solver++2M", "DPM-Solver++3M"], 2),
    "UniPC2-bh1": 3,
    "UniPC2-bh2": 3,
    "UniPC3-bh1": 4,
    "UniPC3-bh2": 4,
}


NETWORK, NOISE = mixture(LINEAR, 3)


@functools.cache
def on_the_flow(t):
    return NETWORK.flow(NOISE, 999, t)


def error_at_200(method, times):
    """Root-mean-square distance to the exact flow at t = 200, somewhere inside the grid."""
    states = solve(method, NETWORK, on_the_flow(times[0]), LINEAR, 1, times=times)
    x = next(state.x for state in states if abs(state.t - 200) < 1e-9)
    return (x - on_the_flow(200)).square().mean().sqrt().item()


def slope(method, times, finer):
    return math.log2(error_at_200(method, times) / error_at_200(method, finer))


def silence(x):
    """Noise of zeros, for the methods that draw noise."""
    return lambda step: torch.zeros_like(x)


def even_in_t(steps):
    return [*SPACINGS["uniform"](steps, LINEAR), -1]


def even_in_lambda(steps):
    """A grid whose steps from t = 900 to 200 are equal in λ, and three more."""
    start, end = LINEAR.half_log_snr(900.0), LINEAR.half_log_snr(200.0)
    values = start + (end - start) / steps * np.arange(steps + 4)
    return [900.0, *LINEAR.time(values[1:steps]), 200.0, *LINEAR.time(values[steps + 1 :])]


def test_the_orders_are_of_methods_in_the_table():
    assert set(ORDERS) <= set(LATER)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in LATER if not METHODS[name].draws()])
def test_order_of_convergence(method):
    """The order in `ORDERS`; a method that is not there converges at least."""
    order = ORDERS.get(method)
    steps = 100 if order == 4 else 200
    found = slope(method, even_in_t(steps), even_in_t(2 * steps))
    assert found > 0.8 if order is None else found == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(
    "method, order",
    [("S-PNDM", 2), ("F-PNDM", 2), ("iPNDM4", 2), ("DEIS-rhoAB3", 4), ("DPM-Solver++2M", 2), ("UniPC3-bh2", 4)],
)
def test_order_of_convergence_on_unequal_steps(method, order):
    """The pseudo methods' weights for equal steps keep order 2 on a smooth grid; their transfer bounds them anyway."""
    assert slope(method, even_in_lambda(80), even_in_lambda(160)) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("method, order", [("S-PNDM", 1), ("iPNDM4", 1), ("FON", 1), ("DEIS-rhoAB2", 3), ("Heun", 2)])
def test_order_of_convergence_on_steps_that_jump(method, order):
    """Steps of lengths 2 and 1 in turn: the weights for equal steps are of order 1 there, the others keep theirs."""

    def times(steps):
        lengths = 700 / (1.5 * steps) * np.array([2, 1] * (steps // 2))
        return [*(900 - np.cumsum([0, *lengths[:-1]])), 200.0, 100.0]

    assert slope(method, times(100), times(200)) == pytest.approx(order, abs=0.2)


def test_fon_is_of_order_2_on_unequal_steps():
    assert slope("FON", even_in_lambda(320), even_in_lambda(640)) < 2.5


falling = st.lists(st.floats(0, 998, allow_subnormal=False), min_size=4, max_size=4, unique=True).filter(
    lambda times: min(abs(a - b) for a, b in pairwise(sorted(times))) > 1
)


@settings(max_examples=25, deadline=None)
@given(falling, st.integers(1, 3), st.sampled_from(["t", "rho", "noise", "data"]))
def test_weights_take_the_mean_of_polynomials_exactly(times, degree, kind):
    """Of any polynomial of the rule's degree in its variable, over a step into the past's continuation."""
    *past, end = sorted(times, reverse=True)
    past = past[::-1][: degree + 1]
    degree, t = len(past) - 1, past[0]
    part = (Data if kind == "data" else Pseudo)(LINEAR)
    rho, lam = LINEAR.rho, LINEAR.half_log_snr
    if kind == "t":
        rule, variable = weights.in_t, lambda time: time / 1000
        mean = quad(lambda r: variable(LINEAR.time(-math.log(r))) ** degree, rho(end), rho(t))[0]
        mean /= rho(t) - rho(end)
    elif kind == "rho":
        rule, variable = weights.in_rho, rho
        mean = (rho(t) ** (degree + 1) - rho(end) ** (degree + 1)) / (degree + 1) / (rho(t) - rho(end))
    else:
        rule, variable, sign = weights.in_lambda(weights.exact), lam, 1 if kind == "data" else -1
        measure = lambda v: math.exp(sign * v)  # noqa: E731
        mean = quad(lambda v: v**degree * measure(v), lam(t), lam(end))[0] / quad(measure, lam(t), lam(end))[0]
    found = rule(part, past, t, end)
    scale = sum(abs(w * variable(time) ** degree) for w, time in zip(found, past, strict=True))
    assert sum(found) == pytest.approx(1, abs=1e-9 * sum(map(abs, found)))
    total = sum(w * variable(time) ** degree for w, time in zip(found, past, strict=True))
    assert total == pytest.approx(mean, abs=1e-6 * scale)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_is_the_mean_over_equal_steps(order):
    equal = weights.weights([-k for k in range(order)], [1 / (j + 1) for j in range(order)])
    np.testing.assert_allclose(equal, weights.ADAMS_BASHFORTH[order], rtol=1e-13)


def test_transfer_of_data_is_phi():
    """x̂₀ and ε are two names of one thing: both parts carry x to the same place, also between close levels."""
    x, eps = reference_noise(), reference_noise().flip(0)
    for t, s in ((900, 400), (30, 29.999999), (20, 0), (3, -1)):
        a = LINEAR.alpha_cumprod(t)
        data = (x - (1 - a) ** 0.5 * eps) / a**0.5
        along = Data(LINEAR).transfer(x, data, t, s)
        torch.testing.assert_close(along, Pseudo(LINEAR).transfer(x, eps, t, s), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, Schedule("quad")], ids=["linear", "cosine", "quad"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 333, 1000])
def test_grids_fall_from_the_noise_to_clean_data(schedule, spacing, steps):
    times = SPACINGS[spacing](steps, schedule)
    assert len(times) == steps
    assert np.all(np.diff(times) < 0)
    assert times[-1] >= 0
    assert times[0] == pytest.approx(1000 - 1000 / steps if spacing == "uniform" else 999)
    step = {
        "uniform": np.asarray,
        "quad": np.sqrt,
        "trailing": np.asarray,
        "logsnr": schedule.half_log_snr,
        "karras": lambda t: schedule.rho(t) ** (1 / 7),
    }[spacing](np.array(times))
    np.testing.assert_allclose(np.diff(step), np.diff(step).mean() if steps > 1 else [], rtol=1e-6)


def test_time_is_the_inverse_of_the_signal_to_noise_ratio():
    for schedule in (LINEAR, COSINE):
        times = np.linspace(-0.9, 999, 2000)
        np.testing.assert_allclose(schedule.time(schedule.half_log_snr(times)), times, atol=1e-9)
        assert schedule.time(schedule.half_log_snr(999)) == pytest.approx(999, abs=1e-9)
    assert LINEAR.half_log_snr(-1) == math.inf


def test_times_are_the_grid():
    assert asked("DDIM", 3) == [1000 * 2 / 3, 1000 / 3, 0]
    noise = reference_noise()
    same = [last(solve("S-PNDM", made_up, noise, LINEAR, 4, times=t)).x for t in (None, [750, 500, 250, 0, -1])]
    assert torch.equal(*same)
    states = list(solve("DPM-Solver++2M", made_up, noise, LINEAR, 1, times=[999, 700.5, 20]))
    assert [state.t for state in states] == [700.5, 20]


@pytest.mark.parametrize("method", LATER)
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_every_count_and_spacing_ends_finite_at_clean_data(method, schedule):
    x = torch.full((1, 1), 0.3, dtype=torch.float64)
    for spacing in SPACINGS:
        for steps in (1, 2, 3, 4, 17):
            states = list(solve(method, made_up, x, schedule, steps, spacing=spacing, noise=silence(x)))
            assert len(states) == steps
            assert states[-1].t == -1
            assert states[-1].x.isfinite().all(), (spacing, steps)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_twenty_steps_end_near_the_exact_flow(spacing):
    start = float(SPACINGS[spacing](20, LINEAR)[0])
    x, alpha = NETWORK.flow(NOISE, start, 0), float(LINEAR.alpha_cumprod(0))
    end = (x - math.sqrt(1 - alpha) * NETWORK(x, x.new_zeros(len(x)))) / math.sqrt(alpha)
    for method in (*ORDERS, "DDIM", "S-PNDM", "F-PNDM"):
        state = last(solve(method, NETWORK, NOISE, LINEAR, 20, spacing=spacing))
        assert (state.x - end).square().mean().sqrt() < (0.5 if method.endswith("bh1") else 0.15), method


def test_a_thousand_steps_can_be_taken():
    x = torch.full((1, 1), 0.3, dtype=torch.float64)
    for method in ("DEIS-tAB3", "UniPC3-bh2", "DDPM"):
        state = last(solve(method, made_up, x, LINEAR, 1000, noise=silence(x)))
        assert state.x.isfinite().all()
        assert state.nfe == 1000


@pytest.mark.parametrize("method", FIXED)
def test_a_state_that_is_changed_in_place_is_the_same_as_a_changed_copy_of_it(method):
    """A method keeps no state that is the caller's."""
    line, grid, noise = METHODS[method], [800.0, 600.0, 400.0, 200.0, 0.0, -1.0], reference_noise()

    def run(change):
        x, memory = noise.clone(), None
        for number in range(5):
            step, reply = line.step(x, memory, LINEAR, grid, number), None
            try:
                while True:
                    event = step.send(reply)
                    reply = made_up(event.x, event.x.new_full((1,), event.t)) if hasattr(event, "t") else 0 * event.x
            except StopIteration as end:
                x, _, memory = end.value
            x = change(x)
        return x

    assert torch.equal(run(lambda x: x.add_(0.1)), run(lambda x: x + 0.1))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ipndm_is_adams_bashforth_with_as_much_history_as_there_is(order):
    coefficients = {
        1: (1,),
        2: (3 / 2, -1 / 2),
        3: (23 / 12, -16 / 12, 5 / 12),
        4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    }
    x, past = reference_noise(), []
    for t, s in pairwise([800.0, 600.0, 400.0, 200.0, 0.0, -1.0]):
        past = [made_up(x, x.new_full((1,), t)), *past][:order]
        eps = sum(w * e for w, e in zip(coefficients[len(past)], past, strict=True))
        x = phi(x, eps, LINEAR.alpha_cumprod(t), LINEAR.alpha_cumprod(s))
    found = last(solve(f"iPNDM{order}", made_up, reference_noise(), LINEAR, 5)).x
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


def test_dpm_solver_3s_is_the_papers_algorithm():
    """Lu et al. 2022, algorithm 2 with r₁ = 1/3, r₂ = 2/3, one step from t = 700 to 300."""

    def level(t):
        alpha = float(LINEAR.alpha_cumprod(t))
        return math.sqrt(alpha), math.sqrt(1 - alpha)

    def eps(x, t):
        return made_up(x, x.new_full((1,), t))

    x, t, s, r1, r2 = reference_noise(), 700.0, 300.0, 1 / 3, 2 / 3
    start, h = LINEAR.half_log_snr(t), LINEAR.half_log_snr(s) - LINEAR.half_log_snr(t)
    s1, s2 = (brentq(lambda at, r=r: LINEAR.half_log_snr(at) - start - r * h, s, t, xtol=1e-12) for r in (r1, r2))
    (a, _), (a1, n1), (a2, n2), (b, n) = (level(at) for at in (t, s1, s2, s))
    e = eps(x, t)
    u1 = a1 / a * x - n1 * math.expm1(r1 * h) * e
    d1 = eps(u1, s1) - e
    u2 = a2 / a * x - n2 * math.expm1(r2 * h) * e - n2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = eps(u2, s2) - e
    end = b / a * x - n * math.expm1(h) * e - n / r2 * (math.expm1(h) / h - 1) * d2
    found = last(solve("DPM-Solver-3S", made_up, x, LINEAR, 1, times=[t, s])).x
    torch.testing.assert_close(found, end, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("total, end", [(10, 0), (100, 0), (500, 0), (4000, 3)])
def test_pf_asks_within_the_training_steps_down_to_a_thousandth_of_them(total, end):
    schedule, times = Schedule(diffusion_step=total), []

    def network(x, t):
        times.extend(t.tolist())
        return made_up(x, t)

    last(solve("PF", network, reference_noise(), schedule, 1, rtol=1e-2, atol=1e-2))
    assert min(times) == end and max(times) == total - 1


@pytest.mark.parametrize("method", LATER)
def test_network_calls_are_those_in_the_table(method):
    """Every step costs what a step between two noisy times costs; the last, into clean data, costs one call."""
    x = reference_noise()
    between = [len(times) for times in calls(trajectory(method, x, LINEAR, 11, times=range(900, 780, -10)))]
    for steps in (1, 2, 5, 12):
        state = last(solve(method, made_up, x, LINEAR, steps, noise=silence(x)))
        assert state.nfe == network_calls(method, LINEAR, steps) == sum(between[: steps - 1]) + 1


@pytest.mark.parametrize("method, stages", [("Heun", 2), ("DPM-Solver-2S", 2), ("DPM-Solver-3S", 3), ("UniPC3-bh2", 1)])
def test_calls_of_a_step(method, stages):
    for steps in (1, 2, 5, 12):
        assert network_calls(method, LINEAR, steps) == stages * (steps - 1) + 1


@pytest.mark.parametrize(
    "method, orders",
    [
        ("iPNDM4", [1, 2, 3, 4, 4, 4]),
        ("DEIS-logrhoAB2", [1, 2, 3, 3, 2, 1]),
        ("Heun", [2, 2, 2, 2, 2, 1]),
        ("DPM-Solver-3S", [3, 3, 3, 3, 3, 1]),
        ("UniPC3-bh1", [1, 2, 3, 3, 2, 1]),
        ("DDPM", [1] * 6),
    ],
)
def test_a_step_says_the_order_in_force(method, orders):
    events = drive(trajectory(method, reference_noise(), LINEAR, 6), lambda event: event.x)
    assert [event.order for event in events if isinstance(event, Step)] == orders


@pytest.mark.parametrize("method", FIXED)
def test_nfe_is_spent_exactly_or_the_neighbours_are_named(method):
    for nfe in (1, 2, 5, 7, 12, 20):
        try:
            steps = steps_for(method, nfe, LINEAR)
        except ValueError as error:
            near = [int(word) for word in str(error).split("it can spend ")[1].split() if word.isdigit()][::2]
            assert near[0] < nfe < near[1]
            for spent in near:
                assert network_calls(method, LINEAR, steps_for(method, spent, LINEAR)) == spent
        else:
            assert network_calls(method, LINEAR, steps) == nfe


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("F-PNDM", 7, LINEAR), "5 in 2 steps or 9 in 3 steps"),
        (("Heun", 30, Schedule(diffusion_step=10)), "it can spend 19 in 10 steps"),
        (("PF", 50, LINEAR), "tolerances"),
        (("DDIM", 7, LINEAR, "published"), "5 in 5 steps or 8 in 8 steps"),
        (("RK4", 7, LINEAR), "is not one of"),
    ],
)
def test_nfe_that_cannot_be_spent(arguments, said):
    with pytest.raises(ValueError, match=said):
        steps_for(*arguments)


@pytest.mark.parametrize("method, eta", [("DDPM", {}), ("DDIM", {"eta": 1.0}), ("DDIM", {"eta": 0.5}), ("DDIM", {})])
def test_weak_order_of_the_stochastic_methods(method, eta):
    """For a Gaussian every step is linear, so the variance of the images is a sum of squares: of the state's response
    to each single noise. Its error against the data's variance falls with the first power of the step."""
    data = GaussianMixture(LINEAR, torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 0.3, dtype=torch.float64))
    errors = []
    for steps in (100, 200, 400):
        draws = torch.eye(steps + 1, dtype=torch.float64)[:, :, None]
        state = last(solve(method, data, draws[0], LINEAR, steps, noise=lambda k, d=draws: d[k + 1], **eta))
        errors.append(abs(state.x.square().sum().item() - 0.3))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(1, abs=0.2), (errors, slopes)


def test_noise_is_asked_for_once_a_step_but_in_the_last():
    steps = []

    def noise(step):
        steps.append(step)
        return torch.zeros(2, 3, 4, 4)

    *_, state = solve("DDPM", made_up, reference_noise(), LINEAR, 5, noise=noise)
    assert steps == [0, 1, 2, 3]
    assert state.x.dtype == torch.float64


def test_ddim_with_every_noise_is_ddpm_and_with_none_is_ddim():
    noise = reference_noise()
    draw = lambda step: torch.full_like(noise, float(step))  # noqa: E731
    both = [
        last(solve(m, made_up, noise, LINEAR, 8, noise=draw, **o)).x for m, o in (("DDPM", {}), ("DDIM", {"eta": 1}))
    ]
    assert torch.equal(*both)
    plain = [last(solve("DDIM", made_up, noise, LINEAR, 8, **options)).x for options in ({}, {"eta": 0.0})]
    assert torch.equal(*plain)


@pytest.mark.parametrize("method", ["DDIM", "DDPM", "DPM-Solver++2M", "DPM-Solver++3M", "UniPC2-bh1", "UniPC3-bh2"])
@pytest.mark.parametrize("limit", [{"clip": True}, {"threshold": 0.9}])
def test_limited_images_stay_in_range(method, limit):
    """The last step into clean data ends at the predicted image itself."""
    x = 4 * reference_noise()
    free = last(solve(method, made_up, x, LINEAR, 6, noise=silence(x))).x
    held = last(solve(method, made_up, x, LINEAR, 6, noise=silence(x), **limit)).x
    assert free.abs().max() > 1.5
    assert held.abs().max() <= 1 + 1e-12


def test_thresholding_scales_each_image_by_its_own_quantile():
    part = Data(LINEAR, threshold=0.5)
    x = torch.stack([torch.linspace(-4, 4, 101), torch.linspace(-0.5, 0.5, 101)])[:, None].double()
    asking = part.gradient(x, 0)
    next(asking)
    with pytest.raises(StopIteration) as end:
        asking.send(x * 0)
    image = x / LINEAR.alphas_cumprod[0] ** 0.5
    bound = image[0].abs().median()
    torch.testing.assert_close(end.value.value[0], image[0].clamp(-bound, bound) / bound)
    torch.testing.assert_close(end.value.value[1], image[1])


@pytest.mark.parametrize("method, calls", [("DDIM", 10), ("Heun", 18), ("F-PNDM", 28)])
def test_guidance_counts_two_calls(method, calls):
    other = lambda x, t: made_up(x, t) * 0.5  # noqa: E731
    ends = {w: last(solve(method, Guided(made_up, other, w), reference_noise(), LINEAR, 5)) for w in (0.0, 1.0, 3.0)}
    assert {state.nfe for state in ends.values()} == {calls}
    for w, network in ((0.0, other), (1.0, made_up), (3.0, lambda x, t: made_up(x, t) * 2)):
        alone = last(solve(method, network, reference_noise(), LINEAR, 5))
        torch.testing.assert_close(ends[w].x, alone.x)
        assert alone.nfe == calls / 2


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "DDPM"}, "draws noise"),
        ({"eta": 0.5}, "draws noise"),
        ({"eta": -0.1}, "from 0 to 1"),
        ({"eta": 1.1}, "from 0 to 1"),
        ({"method": "DDPM", "eta": 0.5}, "takes no option eta"),
        ({"method": torch.nn.Identity()}, "method is a Identity, it must be a name, or a Method"),
        ({"method": "F-PNDM", "clip": True}, r"takes no option clip; these do: DDIM, DPM-Solver\+\+2M, .*, DDPM$"),
        (
            {"method": "F-PNDM", "order": 3},
            "there is no option order; method F-PNDM takes profile, spacing, times, sigma_min",
        ),
        ({"clip": 1}, "clip is 1, it must be True or False"),
        ({"eta": "0.5"}, "eta is '0.5', it must be a number from 0 to 1"),
        ({"eta": None}, "eta is None, it must be a number from 0 to 1"),
        ({"clip": True, "threshold": 0.9}, "exclude each other"),
        ({"threshold": 1.0}, "between 0 and 1"),
        ({"clip": True, "profile": "published"}, "takes no options .* clip: only with profile 'exact'"),
        ({"method": "Heun", "profile": "published"}, "DDIM, S-PNDM, F-PNDM, FON, PF alone"),
        ({"spacing": "even"}, "uniform, quad, trailing, logsnr, karras"),
        ({"spacing": "quad", "profile": "published"}, "uniform spacing alone"),
        ({"spacing": "quad", "times": [9, 0]}, "exclude each other"),
        ({"spacing": "quad", "steps": 1001}, "from 1 to 1000"),
        ({"method": "PF", "spacing": "quad"}, "chooses its own steps"),
        *(
            (
                {"times": times},
                rf"times must be two or more and fall from 999 to 0, except the last, which may be −1 .*; {said}$",
            )
            for times, said in (
                ([], r"they are \[\]"),
                ([5], r"they are \[5.0\]"),
                ([5, 5], r"times\[1\] is 5 after 5"),
                ([5, 6], r"times\[1\] is 6 after 5"),
                ([1000, 5], r"times\[0\] is 1000"),
                ([9, -1, -1], r"times\[1\] is -1"),
                ([9, -0.5, -1], r"times\[1\] is -0.5"),
                ([9, -2], r"times\[1\] is -2"),
                ([math.nan, 3], r"times\[0\] is nan"),
            )
        ),
        ({"times": ["x", 3]}, "times must be a list of numbers"),
    ],
)
def test_wrong_arguments_are_refused_before_the_network_is_called(change, said):
    arguments = {"method": "DDIM", "network": None, "x": torch.zeros(1, 2), "schedule": LINEAR, "steps": 10} | change
    with pytest.raises(ValueError, match=said):
        solve(**arguments)
