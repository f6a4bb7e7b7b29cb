"""Methods that draw noise in their steps: DDIM with η > 0, and DDPM."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pndm.runner.solver.events import Draw, Method, OneStep, Tensor
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.transfer import Data


@dataclass(frozen=True)
class Ancestral(Method):
    """DDIM's family (Song, Meng, Ermon 2021, arXiv:2010.02502), Eq. (12) with σ(η) of Eq. (16).

    x_s = √ᾱ_s x̂₀ + √(1 − ᾱ_s − σ²) ε + σz,  σ = η √((1−ᾱ_s)/(1−ᾱ_t) · (1 − ᾱ_t/ᾱ_s)),  z standard normal noise.

    x̂₀ is the predicted image, clipped or thresholded; ε is what x̂₀ leaves of x. n calls for n steps; weak order 1.
    eta: 0 is DDIM, without noise; 1 is DDPM (Ho et al. 2020) with the variance of the posterior. None makes η an
    option of the method.
    """

    eta: float | None = None

    @property
    def options(self) -> frozenset[str]:
        return Data.options | {"eta"} if self.eta is None else Data.options

    def draws(self, **options: Any) -> bool:
        return bool(options.get("eta") if self.eta is None else self.eta)

    def step(
        self, x: Tensor, memory: Any, schedule: Schedule, grid: Sequence[float], number: int, **options: Any
    ) -> OneStep:
        eta = options.pop("eta") if self.eta is None else self.eta
        part = Data(schedule, **options)
        t, s = grid[number : number + 2]
        data = yield from part.gradient(x, t)
        alpha_t, alpha_s = part.alpha(t), part.alpha(s)
        sigma = eta * math.sqrt((1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s))
        eps = (x - math.sqrt(alpha_t) * data) / math.sqrt(1 - alpha_t)
        x = math.sqrt(alpha_s) * data + math.sqrt(max(0.0, 1 - alpha_s - sigma**2)) * eps
        if sigma > 0:
            x = x + sigma * (yield Draw(x))
        return x, 1, None
