"""EDM's preconditionings: how a network F of its own x and time becomes ε of this project's x and of σ.

EDM's x is x/√ᾱ = x·√(1+σ²), and ε = (x/√ᾱ − D)/σ for its denoiser D = c_skip·x/√ᾱ + c_out·F(c_in·x/√ᾱ, c_noise):
Karras et al. 2022, table 1 and Eq. (7). Each function is called with F, x (n, C, H, W), σ (n or 1, 1, 1, 1) in float32
or better, and σ_data. What the formulas divide by σ is cancelled, so that ε keeps its digits at every level.
"""

BETA_D, BETA_MIN, STEPS = 19.9, 0.1, 1000  # of the VP networks: table 1


def edm(network, x, sigma, sigma_data):
    """c_skip = σ_d²/(σ²+σ_d²), c_out = σ·σ_d/√(σ²+σ_d²), c_in = 1/√(σ²+σ_d²), c_noise = ln(σ)/4."""
    scale = (sigma**2 + sigma_data**2) ** 0.5
    seen = x * ((1 + sigma**2) ** 0.5 / scale).to(x.dtype)
    output = network(seen, (sigma.log() / 4).flatten())
    return (sigma / scale).to(x.dtype) * seen - (sigma_data / scale).to(x.dtype) * output


def vp(network, x, sigma, sigma_data):
    """c_skip = 1, c_out = −σ, c_in = 1/√(1+σ²), c_noise = 999·τ with σ² = exp(β_d τ²/2 + β_min τ) − 1."""
    tau = ((BETA_MIN**2 + 2 * BETA_D * (sigma**2).log1p()) ** 0.5 - BETA_MIN) / BETA_D
    return network(x, ((STEPS - 1) * tau).flatten())


def ve(network, x, sigma, sigma_data):
    """c_skip = 1, c_out = σ, c_in = 1, c_noise = ln(σ/2)."""
    return -network(x * ((1 + sigma**2) ** 0.5).to(x.dtype), (sigma / 2).log().flatten())


PRECONDITIONINGS = {"EDM": edm, "VP": vp, "VE": ve}
