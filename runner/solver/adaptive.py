"""The probability flow by Dormand–Prince 5(4), every image with its own step size: the method PF."""

import numpy as np
from pndm.runner.solver.events import NotFinite, Query, Step
from pndm.runner.solver.transfer import flow
from pndm.runner.solver.weights import combine


def dormand_prince(alpha, slope, clock, x, start, end, rtol, atol, joint=False):
    """Integrate the probability flow from time `start` down to `end`; clock: time → the t that the network is told.

    Step-size control is that of Hairer, Nørsett, Wanner, "Solving ODEs I", II.4, as in SciPy's RK45, whose
    tableau it takes. Images that have arrived are not asked about again. `joint`: one control for all images.
    Written here because it is driven from outside like every other method, image by image; the libraries that
    control the error per image call the network themselves.
    """
    from scipy.integrate import RK45

    def column(values):  # (m,) float64 → a tensor like x that broadcasts over an image
        return x.new_tensor(values).reshape(-1, *[1] * (x.ndim - 1))

    def norm(values):  # root mean square over each image, or over all of them
        squares = (values.double() ** 2).flatten(1).mean(1).cpu().numpy()
        return np.sqrt(np.full_like(squares, squares.mean()) if joint else squares)

    def derivative(x, t):
        eps = yield Query(x, clock(t))
        return flow(x, eps, column(alpha(t)), column(slope(t)))

    def move(x, h, weights, stages):
        pairs = [(w, k) for w, k in zip(weights, stages, strict=True) if w]
        return x + column(h) * combine(*zip(*pairs, strict=True))

    def check_finite(norms, later, earlier):
        if not np.isfinite(norms).all():
            raise NotFinite(f"ε is not finite between t = {clock(later).max():g} and {clock(earlier).min():g}")

    t = np.full(len(x), float(start))
    k1 = yield from derivative(x, t)

    # The first step size: one that an explicit Euler step suggests.
    scale = atol + rtol * x.abs()
    d0, d1 = norm(x / scale), norm(k1 / scale)
    check_finite(d1, t, t)
    h = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / np.maximum(d1, 1e-300))
    h = np.minimum(h, start - end)
    probe = yield from derivative(x - column(h) * k1, t - h)
    curvature = np.maximum(d1, norm((probe - k1) / scale) / h)
    check_finite(curvature, t, t - h)
    guess = np.where(curvature <= 1e-15, np.maximum(1e-6, h * 1e-3), (0.01 / np.maximum(curvature, 1e-300)) ** 0.2)
    h = np.minimum(np.minimum(100 * h, guess), start - end)

    retried = np.zeros(len(x), bool)
    while (running := np.flatnonzero(t > end)).size:
        s = np.maximum(t[running] - h[running], end)
        step = t[running] - s
        x0, stages = x[running], [k1[running]]
        for a, c in zip(RK45.A[1:], RK45.C[1:], strict=True):
            x1 = move(x0, -step, a[: len(stages)], stages)
            stages.append((yield from derivative(x1, t[running] - c * step)))
        x1 = move(x0, -step, RK45.B, stages)
        stages.append((yield from derivative(x1, s)))

        scale = atol + rtol * x0.abs().maximum(x1.abs())
        error = norm(move(x0 * 0, step, RK45.E, stages) / scale)
        check_finite(error, t[running], s)
        good = error < 1
        factor = 0.9 * np.maximum(error, 1e-300) ** -0.2
        limit = np.where(good, np.where(retried[running], 1.0, 10.0), 1.0)
        h[running] = step * np.clip(factor, 0.2, limit)
        retried[running] = ~good

        done = running[good]
        x, k1 = x.clone(), k1.clone()
        x[done], k1[done] = x1[good], stages[-1][good]
        t[done] = s[good]
        if (h < 10 * np.spacing(np.abs(t)))[t > end].any():
            raise NotFinite(
                f"the step size vanished at t = {clock(t).max():g}; the flow cannot be followed to rtol {rtol}"
            )
        if done.size:
            yield Step(x, t.copy())
