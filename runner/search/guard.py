"""Guard: on noises that nothing was searched on, a result must beat all before it by more than its error."""

from pndm.runner.search.problem import better
from pndm.runner.search.rank import by_distance


def judged(problem, held_out, stages):
    """(winner, the candidates with their errors on the held-out noises, what was refused).

    stages: lists of candidates: the built-in ones, then the results of each stage of the search, in order. Of a later
    stage the best takes the lead only if it is better than the leader by more than two standard errors of the
    difference, noise by noise.
    """
    measured = [by_distance(candidate.measured(problem, held_out) for candidate in stage) for stage in stages if stage]
    leader, refused = measured[0][0], []
    for first, *_ in measured[1:]:
        if better(first.errors, leader.errors):
            leader = first
        else:
            refused.append(first)
    return leader, [candidate for stage in measured for candidate in stage], refused
