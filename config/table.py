"""The keys of a table (config/tables/*.yml): methods × steps × profiles × seeds, one sampling run in each cell."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from pndm.config.keys import Contradiction, Section, Text, key, needed, real, whole
from pndm.runner.solver.published import PROFILES


class Closed(Section):
    """A section in which every key counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Value(Closed):
    value: real() = needed("a distance of the paper")
    basis: Literal["quoted", "confirmed", "inferred"] = needed(
        "read in one text that quotes the paper, in two or more, or with the row deduced"
    )


class PaperSection(Closed):
    fid: dict[str, dict[int | Literal["best"], Value]] = key({}, "label → steps → FID; what is not known is left out")
    seconds_per_step: dict[str, real(gt=0)] = key({}, "label → seconds a step, of a whole batch")


class Cells(Closed):
    """Some cells of a table: all combinations of methods, steps (or network calls), profiles and seeds."""

    steps: list[whole(1, 10**5)] = key([], "numbers of steps")
    nfe: list[whole(1, 10**6)] = key(
        [], "numbers of network calls, instead of steps; a method that cannot spend one takes the most calls below it"
    )
    profiles: Annotated[list[Literal[PROFILES]], Field(min_length=1)] = key(["exact"], "profiles")
    seeds: whole(1, 1000) = key(1, "number of seeds: 0, 1, …")


class Table(Cells):
    experiment: str = needed("the experiment: a path, or a file of config/")
    methods: Annotated[list[Text | Annotated[dict, Field(min_length=1)]], Field(min_length=1)] = needed(
        "a method's name, or a mapping of Sample keys that may add `label` and an `experiment` of its own"
    )
    images: whole(2, 10**8) = needed("images a cell")
    sample: dict = key({}, "Sample keys of all cells")
    more: list[Cells] = key([], "further cells, of the same methods")
    flow: whole(0, 10**6) = key(8, "images whose distance to the exact flow is measured; 0: none")
    paper: PaperSection = key(PaperSection(), "the paper's values")

    @model_validator(mode="after")
    def _consistent(self):
        groups = (self, *self.more)
        if any(group.steps for group in groups) and any(group.nfe for group in groups):
            raise Contradiction("steps and nfe exclude each other in a table", "steps")
        return self
