"""The keys of a table (config/tables/*.yml): methods × steps × profiles × seeds, one sampling run in each cell."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pndm.config.keys import CALLS, STEPS, Contradiction, Section, key, needed

Steps = Annotated[int, Field(**STEPS)]
Calls = Annotated[int, Field(**CALLS)]
Positive = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(min_length=1)]
Mapping = Annotated[dict, Field(min_length=1)]


class Value(Section):
    value: float = needed("a distance of the paper")
    basis: Literal["quoted", "confirmed", "inferred"] = needed(
        "read in one text that quotes the paper, in two or more, or with the row deduced"
    )


class PaperSection(Section):
    source: str = key("the paper", "whose values these are", min_length=1)
    fid: dict[str, dict[int | Literal["best"], Value]] = key(
        {}, "label → steps, in a table by nfe network calls → FID; what is not known is left out"
    )
    seconds_per_step: dict[str, Positive] = key({}, "label → seconds a step of 512 images")


class Cells(Section):
    """Some cells of a table: all combinations of methods, steps (or network calls), profiles and seeds."""

    steps: list[Steps] = key([], "numbers of steps")
    nfe: list[Calls] = key(
        [], "numbers of network calls, instead of steps; a method that cannot spend one takes the most calls below it"
    )
    profiles: list[Literal["exact", "published"]] = key(["exact"], "profiles", min_length=1)
    seeds: int = key(1, "number of seeds: 0, 1, …", ge=1, le=1000)


class Table(Cells):
    experiment: str = needed("the experiment: a path, or a file of config/")
    methods: list[Name | Mapping] = needed(
        "a method's name, or a mapping of Sample keys that may add `label` and an `experiment` of its own", min_length=1
    )
    images: int = needed("images a cell", ge=2, le=10**8)
    sample: dict = key({}, "Sample keys of all cells")
    more: list[Cells] = key([], "further cells, of the same methods")
    flow: int = key(8, "images whose distance to the exact flow is measured; 0: none", ge=0, le=10**6)
    paper: PaperSection = key(PaperSection(), "the paper's values")

    @property
    def by_calls(self):
        """Whether its columns are numbers of network calls, not of steps."""
        return any(group.nfe for group in (self, *self.more))

    @model_validator(mode="after")
    def _consistent(self):
        if self.by_calls and any(group.steps for group in (self, *self.more)):
            raise Contradiction("steps and nfe exclude each other in a table", "steps")
        return self
