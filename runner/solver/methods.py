"""The table of the methods, `METHODS`: the paper's five, and those that came after.

A method is two choices. The gradient part is how gradients are combined: a step function, or a rule of `weights`. The
transfer part is how x moves along the combination: `Pseudo`, `Data` or `Classical`. docs/add-a-method.md adds a method.

Paper: Liu, Ren, Lin, Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", ICLR 2022,
arXiv:2202.09778. Eq. (9) there is `transfer.phi`, Eqs. (12) and (13) are the combinations, Algorithm 2 is `Multistep`.
"""

import math
from collections.abc import Callable

from pndm.runner.solver import weights
from pndm.runner.solver.adaptive import Adaptive
from pndm.runner.solver.ancestral import Ancestral
from pndm.runner.solver.events import Method
from pndm.runner.solver.multistep import Multistep, PredictorCorrector
from pndm.runner.solver.singlestep import Singlestep, improved_euler, kutta, midpoint, runge_kutta
from pndm.runner.solver.transfer import Classical, Data, Pseudo


def ipndm(order: int) -> Method:
    """F-PNDM without its start (Zhang & Chen 2023, arXiv:2204.13902). n calls for n steps; order 2, the transfer's."""
    return Multistep(order)


def deis(rule: weights.Rule, degree: int, taper: bool = False) -> Method:
    """DEIS with a polynomial of that degree (Zhang & Chen 2023, Eq. (15)). n calls for n steps; order degree + 1."""
    return Multistep(degree + 1, rule=rule, taper=taper)


def heun() -> Method:
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 1. 2n − 1 calls for n steps; order 2."""
    return Singlestep(improved_euler)


def dpm_solver_2s() -> Method:
    """Lu et al. 2022 (arXiv:2206.00927), algorithm 1. 2n − 1 calls for n steps; order 2."""
    return Singlestep(midpoint)


def dpm_solver_3s() -> Method:
    """Lu et al. 2022 (arXiv:2206.00927), algorithm 2. 3n − 2 calls for n steps; order 3."""
    return Singlestep(kutta)


def dpm_solver_m(order: int, part: type[Pseudo]) -> Method:
    """Lu et al. 2022b (arXiv:2211.01095), algorithm 2; of ε, and order 3: their code. n calls for n steps; order 2."""
    return Multistep(order, part=part, rule=weights.in_lambda(weights.dpm_solver), taper=True)


def unipc(order: int, scale: Callable[[float], float]) -> Method:
    """Zhao et al. 2023 (arXiv:2302.04867), B(h) = scale(h). n calls for n steps; order + 1, by the corrector."""
    return PredictorCorrector(order, weights.in_lambda(weights.unipc(scale)))


LOGRHO = weights.in_lambda(weights.exact)

# Calls for n steps (n > order), and the order of the error on a given interval. A start by lower orders limits it to 2.
METHODS: dict[str, Method] = {
    # The paper
    "DDIM": Multistep(order=1, start=None, part=Pseudo, with_options=Ancestral()),  # n calls; order 1
    "S-PNDM": Multistep(order=2, start=improved_euler, part=Pseudo),  #               n + 1; 2
    "F-PNDM": Multistep(order=4, start=runge_kutta, part=Pseudo),  #                  n + 9; 2
    "FON": Multistep(order=4, start=runge_kutta, part=Classical),  #                  n + 9; 4
    "PF": Adaptive(),  #                                                              what the tolerances take
    # What came after
    "iPNDM2": ipndm(2),
    "iPNDM3": ipndm(3),
    "iPNDM4": ipndm(4),
    "DEIS-tAB1": deis(weights.in_t, 1),
    "DEIS-tAB2": deis(weights.in_t, 2),
    "DEIS-tAB3": deis(weights.in_t, 3),
    "DEIS-rhoAB1": deis(weights.in_rho, 1),
    "DEIS-rhoAB2": deis(weights.in_rho, 2),
    "DEIS-rhoAB3": deis(weights.in_rho, 3),
    "DEIS-logrhoAB1": deis(LOGRHO, 1, taper=True),
    "DEIS-logrhoAB2": deis(LOGRHO, 2, taper=True),
    "Heun": heun(),
    "DPM-Solver-2S": dpm_solver_2s(),
    "DPM-Solver-3S": dpm_solver_3s(),
    "DPM-Solver-2M": dpm_solver_m(2, Pseudo),
    "DPM-Solver-3M": dpm_solver_m(3, Pseudo),
    "DPM-Solver++2M": dpm_solver_m(2, Data),
    "DPM-Solver++3M": dpm_solver_m(3, Data),
    "UniPC2-bh1": unipc(2, lambda h: h),
    "UniPC2-bh2": unipc(2, math.expm1),
    "UniPC3-bh1": unipc(3, lambda h: h),
    "UniPC3-bh2": unipc(3, math.expm1),
    "DDPM": Ancestral(eta=1.0),
}


def method_named(name: str) -> Method:
    """The line of `METHODS` of that name. Raises ValueError."""
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
    return METHODS[name]


def methods_with(option: str) -> list[str]:
    """The names of the methods that take an option, a name in `OPTIONS`."""
    return [name for name, line in METHODS.items() if option in line.options]
