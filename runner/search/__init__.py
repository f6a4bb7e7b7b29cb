"""The search for the best sampler of a network at a number of network calls: rank, grid, fit, guard."""
