"""The paper in code: schedules, grids of times, gradient parts, transfer parts, methods. It knows nothing else."""
