"""The table of the methods, `METHODS`: the paper's five, and those that came after.

A method is two choices. The gradient part is how gradients are combined: a step function, or a rule of `weights`. The
transfer part is how x moves along the combination: `Pseudo`, `Data` or `Classical`. docs/add-a-method.md adds a method.

Paper: Liu, Ren, Lin, Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", ICLR 2022,
arXiv:2202.09778. Eq. (9) there is `transfer.phi`, Eqs. (12) and (13) are the combinations, Algorithm 2 is `Multistep`.
"""

import math

from pndm.runner.solver.adaptive import Adaptive
from pndm.runner.solver.ancestral import Ancestral
from pndm.runner.solver.events import Method
from pndm.runner.solver.multistep import Multistep, PredictorCorrector
from pndm.runner.solver.singlestep import Singlestep, improved_euler, kutta, midpoint, runge_kutta
from pndm.runner.solver.transfer import Classical, Data, Pseudo
from pndm.runner.solver.weights import dpm_solver, exact, in_lambda, in_rho, in_t, unipc

LOGRHO = in_lambda(exact)
DPM_SOLVER = in_lambda(dpm_solver)
BH1, BH2 = in_lambda(unipc(lambda h: h)), in_lambda(unipc(math.expm1))

# Calls for n steps (n > order), and the order of the error on a given interval. A start by lower orders limits it to 2.
METHODS: dict[str, Method] = {
    # The paper
    "DDIM": Multistep(order=1, start=None, part=Pseudo, with_options=Ancestral()),  # n calls; order 1
    "S-PNDM": Multistep(order=2, start=improved_euler, part=Pseudo),  #               n + 1; 2
    "F-PNDM": Multistep(order=4, start=runge_kutta, part=Pseudo),  #                  n + 9; 2
    "FON": Multistep(order=4, start=runge_kutta, part=Classical),  #                  n + 9; 4
    "PF": Adaptive(),  #                                                              what the tolerances take
    # F-PNDM without its start (Zhang & Chen 2023, arXiv:2204.13902): n calls; order 2, the transfer's
    "iPNDM2": Multistep(order=2),
    "iPNDM3": Multistep(order=3),
    "iPNDM4": Multistep(order=4),
    # DEIS with a polynomial of degree 1, 2, 3 (Zhang & Chen 2023, Eq. (15)): n calls; order degree + 1
    "DEIS-tAB1": Multistep(order=2, rule=in_t),
    "DEIS-tAB2": Multistep(order=3, rule=in_t),
    "DEIS-tAB3": Multistep(order=4, rule=in_t),
    "DEIS-rhoAB1": Multistep(order=2, rule=in_rho),
    "DEIS-rhoAB2": Multistep(order=3, rule=in_rho),
    "DEIS-rhoAB3": Multistep(order=4, rule=in_rho),
    "DEIS-logrhoAB1": Multistep(order=2, rule=LOGRHO, taper=True),
    "DEIS-logrhoAB2": Multistep(order=3, rule=LOGRHO, taper=True),
    # Karras et al. 2022 (arXiv:2206.00364), algorithm 1; DPM-Solver, Lu et al. 2022 (arXiv:2206.00927), algorithms 1, 2
    "Heun": Singlestep(improved_euler),  #    2n − 1 calls; order 2
    "DPM-Solver-2S": Singlestep(midpoint),  # 2n − 1; 2
    "DPM-Solver-3S": Singlestep(kutta),  #    3n − 2; 3
    # Lu et al. 2022b (arXiv:2211.01095), algorithm 2; of ε, and order 3: their code. n calls; order 2
    "DPM-Solver-2M": Multistep(order=2, part=Pseudo, rule=DPM_SOLVER, taper=True),
    "DPM-Solver-3M": Multistep(order=3, part=Pseudo, rule=DPM_SOLVER, taper=True),
    "DPM-Solver++2M": Multistep(order=2, part=Data, rule=DPM_SOLVER, taper=True),
    "DPM-Solver++3M": Multistep(order=3, part=Data, rule=DPM_SOLVER, taper=True),
    # Zhao et al. 2023 (arXiv:2302.04867), B(h) = h or e^h − 1: n calls; order + 1, by the corrector
    "UniPC2-bh1": PredictorCorrector(order=2, rule=BH1),
    "UniPC2-bh2": PredictorCorrector(order=2, rule=BH2),
    "UniPC3-bh1": PredictorCorrector(order=3, rule=BH1),
    "UniPC3-bh2": PredictorCorrector(order=3, rule=BH2),
    # Ho et al. 2020 (arXiv:2006.11239): n calls; weak order 1
    "DDPM": Ancestral(eta=1.0),
}
"""All methods: name → `Method`. A new line in it is a new method, everywhere.

    >>> from pndm import METHODS
    >>> [name for name in METHODS][:5]
    ['DDIM', 'S-PNDM', 'F-PNDM', 'FON', 'PF']
"""


def method_named(name: str | Method) -> Method:
    """The line of `METHODS` of that name; a `Method` is itself a line. Raises ValueError."""
    if isinstance(name, Method):
        return name
    if not isinstance(name, str):
        raise ValueError(f"method is a {type(name).__name__}, it must be a name, or a Method")
    if name not in METHODS:
        raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
    return METHODS[name]
