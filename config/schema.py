"""The keys of an experiment: their types, ranges, defaults and meaning, and how files and flags become one.

`load("digits.yml", {"Sample.batch_size": ("--batch_size", "64")})` returns a validated `Experiment`.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pndm.config.errors import InputError
from pndm.runner.measure.features import EXTRACTORS
from pndm.runner.solver.grid import SPACINGS
from pndm.runner.solver.methods import METHODS, PROFILES
from pndm.runner.solver.schedule import TYPES
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    model_validator,
)

FOLDER = Path(__file__).parent
PRECISIONS = ("auto", "fp32", "tf32", "bf16")

Positive = Annotated[int, Field(ge=1, le=10**9)]
Batch = Annotated[
    Annotated[int, Field(ge=1, le=2**16)],
    WrapValidator(lambda value, whole: value if value == "auto" else whole(value)),
    PlainSerializer(lambda value: value),
]
Rate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Widths = Annotated[list[Positive], Field(min_length=1)]
_WITH_COMMAS = BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)
Times = Annotated[list[float], _WITH_COMMAS]
Names = Annotated[list[Literal["kid", "prdc"]], _WITH_COMMAS]


def key(default, meaning, **limits):
    return Field(default, description=meaning, **limits)


def needed(meaning, **limits):
    return Field(description=meaning, **limits)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ScheduleSection(Section):
    type: Literal[TYPES] = key("linear", "how β grows with t")
    beta_start: Share = key(1e-4, "β at the first training step (linear, quad)")
    beta_end: Share = key(0.02, "β at the last training step (linear, quad)")
    diffusion_step: Positive = key(1000, "number of training steps")
    noise_schedule: Literal[TYPES] | None = key(None, "released iDDPM file: says again what `type` says")
    predict_xstart: Literal[False] = key(False, "released iDDPM file: the network predicts ε")
    use_kl: Literal[False] = key(False, "released iDDPM file: no variational loss")
    learn_sigma: bool = key(False, "released iDDPM file: out_channels says it; the methods use ε alone")
    sigma_small: bool = key(False, "released iDDPM file: variances are not used")
    rescale_timesteps: bool = key(
        True, "released iDDPM file: no effect, t is told in training steps, which its 1000 are already"
    )
    rescale_learned_sigmas: bool = key(True, "released iDDPM file: variances are not used")
    timestep_respacing: str = key("", "released iDDPM file: the method chooses the steps")

    @model_validator(mode="after")
    def _consistent(self):
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}")
        if self.noise_schedule not in (None, self.type):
            raise ValueError(f"noise_schedule {self.noise_schedule!r} contradicts type {self.type!r}")
        return self


class DatasetSection(Section):
    dataset: Literal["DIGITS", "CIFAR10", "CELEBA", "LSUN", "FFHQ", "FOLDER"] = needed("which images")
    category: str | None = key(None, "LSUN: bedroom, church_outdoor, …")
    path: str | None = key(None, "folder of the files; default temp/dataset/NAME")
    image_size: Positive = needed("height and width in pixels")
    channels: Literal[1, 3] = needed("colour channels")
    batch_size: Positive = key(64, "images in a training batch")
    random_flip: bool = key(False, "training: mirror half of the images")
    rescaled: bool = key(True, "the network sees [−1, 1], not [0, 1]")
    logit_transform: bool = key(False, "the network sees logits of [0, 1]")
    uniform_dequantization: bool = key(False, "training: add uniform noise of one grey level")
    gaussian_dequantization: bool = key(False, "training: add normal noise of deviation 0.01")
    num_workers: Annotated[int, Field(ge=0)] = key(0, "processes that read training images")

    @model_validator(mode="after")
    def _consistent(self):
        if self.rescaled and self.logit_transform:
            raise ValueError("rescaled and logit_transform exclude each other")
        return self


class DDIMModel(Section):
    struc: Literal["DDIM"]
    type: Literal["simple"] = key("simple", "DDIM's plain network")
    image_size: Positive = needed("height and width in pixels")
    in_channels: Positive = needed("colour channels")
    out_ch: Positive = needed("channels of the output")
    ch: Positive = needed("channels of the finest level, a multiple of 32")
    ch_mult: Widths = needed("channels of each level, in units of ch")
    num_res_blocks: Positive = needed("residual blocks a level")
    attn_resolutions: list[Positive] = needed("resolutions with attention")
    dropout: Rate = key(0.0, "dropout in the residual blocks, in training")
    var_type: Literal["fixedlarge", "fixedsmall"] = key("fixedlarge", "released files: variances are not used")
    resamp_with_conv: bool = key(True, "convolutions where the resolution changes")


class IDDPMModel(Section):
    struc: Literal["iDDPM"]
    in_channels: Positive = needed("colour channels")
    model_channels: Positive = needed("channels of the finest level, a multiple of 32")
    out_channels: Positive = needed("channels of the output: ε, then variances, which are not used")
    num_res_blocks: Positive = needed("residual blocks a level")
    attention_resolutions: list[Positive] = needed("downsampling rates with attention")
    dropout: Rate = key(0.0, "dropout in the residual blocks, in training")
    channel_mult: Widths = needed("channels of each level, in units of model_channels")
    dims: Literal[2] = key(2, "images")
    conv_resample: bool = key(True, "convolutions where the resolution changes")
    use_scale_shift_norm: bool = key(False, "the embedding scales and shifts the second norm")
    use_checkpoint: Literal[False] = key(False, "gradient checkpointing")
    num_heads: Positive = key(1, "attention heads")
    num_heads_upsample: int = key(-1, "attention heads on the way up; −1: num_heads")


class PFModel(Section):
    struc: Literal["PF"]
    image_size: Positive = needed("height and width in pixels")
    num_channels: Positive = needed("colour channels")
    nf: Positive = needed("channels of the finest level, a multiple of 32")
    ch_mult: Widths = needed("channels of each level, in units of nf")
    num_res_blocks: Positive = needed("residual blocks a level")
    attn_resolutions: list[Positive] = needed("resolutions with attention")
    dropout: Rate = key(0.0, "dropout in the residual blocks, in training")
    nonlinearity: Literal["swish"] = key("swish", "SiLU")
    resamp_with_conv: bool = key(True, "convolutions where the resolution changes")
    conditional: Literal[True] = key(True, "the network is told t")
    centered: Literal[True] = key(True, "images are in [−1, 1]")


class PFDeepModel(Section):
    struc: Literal["PF_deep"]
    image_size: Positive = needed("height and width in pixels")
    num_channels: Positive = needed("colour channels")
    nf: Positive = needed("channels of the finest level")
    ch_mult: Widths = needed("channels of each level, in units of nf")
    num_res_blocks: Positive = needed("residual blocks a level")
    attn_resolutions: list[Positive] = needed("resolutions with attention")
    dropout: Rate = key(0.0, "dropout in the residual blocks, in training")
    nonlinearity: Literal["swish"] = key("swish", "SiLU")
    resamp_with_conv: Literal[True] = key(True, "the residual blocks that change the resolution have convolutions")
    conditional: Literal[True] = key(True, "the network is told t")
    skip_rescale: bool = key(True, "residual sums divided by √2")
    resblock_type: Literal["biggan"] = key("biggan", "residual blocks change the resolution")
    progressive: Literal["none"] = key("none", "no progressive output")
    progressive_input: Literal["none"] = key("none", "no progressive input")
    embedding_type: Literal["positional"] = key("positional", "sinusoidal embedding of t")
    init_scale: Annotated[float, Field(ge=0)] = key(0.0, "released file: weights come from the checkpoint")
    combine_method: Literal["sum", "cat"] = key("sum", "of the progressive input, which is none")
    fir: Literal[False] = key(False, "no FIR filters")
    fir_kernel: list[int] = key([1, 3, 3, 1], "of the FIR filters, which are none")
    continuous: bool = key(True, "released file: how it was trained")
    centered: Literal[True] = key(True, "images are in [−1, 1]")
    fourier_scale: float = key(16, "of the Fourier embedding, which is not used")
    scale_by_sigma: Literal[False] = key(False, "the output is ε")


ModelSection = Annotated[DDIMModel | IDDPMModel | PFModel | PFDeepModel, Field(discriminator="struc")]


class TrainSection(Section):
    epoch: Positive = key(1000, "passes over the dataset")
    loss_type: Literal["linear", "square"] = key("square", "|ε − ε_θ| (linear) or its square, summed over the image")
    ema: bool = key(True, "keep an exponential moving average of the weights")
    ema_rate: Rate = key(0.999, "its decay a step; less in the first steps, (1+n)/(10+n)")
    precision: Literal["fp32", "bf16"] = key("fp32", "bf16: the network computes in bfloat16, weights stay float32")
    micro_batch: Positive | None = key(None, "images a process runs at once; the rest of the batch accumulates")
    warmup: Annotated[int, Field(ge=0)] = key(0, "steps over which the learning rate rises to lr")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = key(0, "of weights, order, times, noise, dropout")
    log_interval: Positive = key(50, "steps between scalars")
    sample_interval: Positive = key(2000, "steps between sample grids")
    distance_num: Annotated[int, Field(ge=0)] = key(0, "images of the distance measured at each sample grid; 0: none")
    checkpoint_interval: Positive = key(2000, "steps between checkpoints")


class OptimSection(Section):
    optimizer: Literal["adam", "sgd"] = key("adam", "torch.optim's; sgd has momentum 0.9")
    lr: Annotated[float, Field(gt=0)] = key(2e-4, "learning rate")
    beta1: Rate = key(0.9, "Adam's first decay; the second is 0.999")
    eps: Annotated[float, Field(gt=0)] = key(1e-8, "Adam's ε")
    amsgrad: bool = key(False, "Adam's AMSGrad variant")
    weight_decay: Annotated[float, Field(ge=0)] = key(0.0, "L2 penalty")
    grad_clip: Annotated[float, Field(gt=0)] | None = key(None, "largest norm of the gradient")


class SampleSection(Section):
    method: Literal[tuple(METHODS)] = key("F-PNDM", "numerical method")
    sample_speed: Positive = key(50, "number of steps")
    nfe: Positive | None = key(None, "instead: the number of network calls an image, exactly")
    spacing: Literal[tuple(SPACINGS)] = key("uniform", "of the times")
    times: Times | None = key(None, "instead of steps and spacing: falling times, the last where images end, −1: clean")
    eta: Annotated[float, Field(ge=0, le=1)] = key(0.0, "DDIM: share of DDPM's noise in every step")
    clip: bool = key(False, "what predicts the image: clip it to [−1, 1] at every step")
    threshold: Share | None = key(None, "instead: dynamic thresholding by this quantile of |x̂₀|, 0.995 in its paper")
    profile: Literal[PROFILES] = key("exact", "exact: the paper; published: the released code, quirks included")
    rtol: Annotated[float, Field(gt=0, lt=1)] | None = key(None, "PF: relative tolerance, default 1e-5")
    atol: Annotated[float, Field(gt=0)] | None = key(None, "PF: absolute tolerance, default 1e-5")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = key(0, "of the noise of every image")
    total_num: Annotated[int, Field(ge=1, le=10**8)] = key(1000, "number of images")
    batch_size: Batch = key(128, "images a network call; auto: what the memory takes")
    precision: Literal[PRECISIONS] = key(
        "auto", "of the network; auto: bf16 where the device is made for it, else fp32"
    )
    compile: bool = key(False, "compile the network with torch.compile: half a minute, then faster")
    keep: Annotated[int, Field(ge=0)] | None = key(None, "images left as files, the first; default all")
    model_path: str | None = key(None, "the checkpoint")
    features: Literal[(*EXTRACTORS, "none")] = key("none", "features of the Fréchet distance; inception: the FID")
    metrics: Names = key([], "beyond the Fréchet distance: kid, prdc, or both, with a comma between")
    statistics: str | None = key(None, "statistics file of the reference; default the dataset itself")
    inception_path: str | None = key(None, "pytorch-fid's Inception weights; default the hub's cache, or downloaded")
    mpi4py: bool = key(False, "released files: processes are started by torchrun instead")
    last_only: Literal[True] = key(True, "only final images are written")


class Experiment(Section):
    Schedule: ScheduleSection
    Dataset: DatasetSection
    Model: ModelSection
    Train: TrainSection = TrainSection()
    Optim: OptimSection = OptimSection()
    Sample: SampleSection = SampleSection()

    @model_validator(mode="after")
    def _consistent(self):
        size = getattr(self.Model, "image_size", self.Dataset.image_size)
        if size != self.Dataset.image_size:
            raise ValueError(f"Model.image_size {size} is not Dataset.image_size {self.Dataset.image_size}")
        channels = getattr(self.Model, "in_channels", None) or self.Model.num_channels
        if channels != self.Dataset.channels:
            raise ValueError(f"the Model's {channels} input channels are not Dataset.channels {self.Dataset.channels}")
        if self.Sample.sample_speed > self.Schedule.diffusion_step:
            raise ValueError(
                f"Sample.sample_speed {self.Sample.sample_speed} is above Schedule.diffusion_step "
                f"{self.Schedule.diffusion_step}"
            )
        halvings = len(getattr(self.Model, "channel_mult", [1])) - 1  # of a model that does not know its image size
        if self.Dataset.image_size % 2**halvings:
            raise ValueError(f"Dataset.image_size {self.Dataset.image_size} cannot be halved {halvings} times")
        if (self.Sample.clip or self.Sample.threshold is not None) and not self.Dataset.rescaled:
            raise ValueError("Sample.clip and Sample.threshold need images in [−1, 1], Dataset.rescaled")
        return self


class Value(Section):
    value: float = needed("a distance of the paper")
    basis: Literal["quoted", "confirmed", "inferred"] = needed(
        "read in one text that quotes the paper, in two or more, or with the row deduced"
    )


class PaperSection(Section):
    fid: dict[str, dict[int | Literal["best"], Value]] = key({}, "label → steps → FID; what is not known is left out")
    seconds_per_step: dict[str, Annotated[float, Field(gt=0)]] = key({}, "label → seconds a step, of a whole batch")


class Cells(Section):
    """Some cells of a table: all combinations of methods, steps (or network calls), profiles and seeds."""

    steps: list[Positive] = key([], "numbers of steps")
    nfe: list[Positive] = key(
        [], "instead: numbers of network calls, or where a method cannot spend them the most below"
    )
    profiles: Annotated[list[Literal[PROFILES]], Field(min_length=1)] = key(["exact"], "profiles")
    seeds: Annotated[int, Field(ge=1, le=1000)] = key(1, "number of seeds: 0, 1, …")


class Table(Cells):
    experiment: str = needed("the experiment: a path, or a file of config/")
    methods: Annotated[list[str | dict], Field(min_length=1)] = needed(
        "a method's name, or a mapping of Sample keys that may add `label` and an `experiment` of its own"
    )
    images: Annotated[int, Field(ge=2)] = needed("images a cell")
    sample: dict = key({}, "Sample keys of all cells")
    more: list[Cells] = key([], "further cells, of the same methods")
    flow: Annotated[int, Field(ge=0)] = key(8, "images whose distance to the exact flow is measured; 0: none")
    paper: PaperSection = key(PaperSection(), "the paper's values")

    @model_validator(mode="after")
    def _consistent(self):
        groups = (self, *self.more)
        if any(group.steps for group in groups) and any(group.nfe for group in groups):
            raise ValueError("steps and nfe exclude each other in a table")
        return self


def find(name, flag="--config", folder=FOLDER):
    """The path of the YAML file `name`: as given, or in the folder of such files."""
    for path in (Path(name), folder / name):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in folder.glob("*.yml")))
    raise InputError(f"{flag}: no file {name}, here or in {folder.name}/, which has {known}")


def read(path, what):
    """The mapping in a YAML file. Raises InputError."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or 'not text'}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: {what}")
    return tree


def load_table(name):
    """Read table `name`, a path or what is in config/tables (with or without .yml): its path and a `Table`.

    Raises InputError naming file and key.
    """
    path = Path(name)
    if not path.is_file():
        path = find(name if name.endswith(".yml") else f"{name}.yml", "--table", FOLDER / "tables")
    tree = read(path, f"a table is a mapping of keys {', '.join(Table.model_fields)}")
    try:
        return path, Table.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = Cells.model_fields if first["loc"][0] == "more" else Table.model_fields
            raise InputError(f"{path}: unknown key {name}{_nearest(str(first['loc'][-1]), known)}") from None
        raise InputError(f"{path}: {_message(first, first['loc'], tree)}") from None


def load(name, overrides=None):
    """Read experiment `name` and lay `overrides` over it: "Section.key" → (flag to name in errors, value).

    Raises InputError naming file or flag, section and key.
    """
    path = find(name)
    tree = read(path, f"an experiment is a mapping of sections {', '.join(Experiment.model_fields)}")
    return validate(tree, path, overrides)


def validate(tree, path, overrides=None):
    """An `Experiment` from a dict of sections; `path` and `overrides` as in `load`. Raises InputError."""
    tree = dict(tree)
    flags = {}
    for target, (flag, value) in (overrides or {}).items():
        section, _, name = target.partition(".")
        if section not in Experiment.model_fields:
            raise InputError(f"{flag}: no section {section!r}{_nearest(section, Experiment.model_fields)}")
        if not isinstance(held := tree.get(section) or {}, dict):
            raise InputError(f"{path}: {section} is {held!r}; a section is a mapping of keys")
        tree[section] = {**held, name: value}
        flags[target] = flag
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise InputError(_explain(error, tree, str(path), flags)) from None


def with_sample(experiment, place, **values):
    """`experiment` with other values of Sample keys. Raises InputError naming the `place` they come from."""
    try:
        sample = SampleSection.model_validate(experiment.Sample.model_dump() | values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{place}: {_message(first, ('Sample', *first['loc']), {})}") from None
    return experiment.model_copy(update={"Sample": sample})


def model_section(config):
    """Validate a `Model` section given as a dict. Raises InputError."""
    if isinstance(config, Section):
        return config
    try:
        return TypeAdapter(ModelSection).validate_python(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(_message(first, ("Model", *first["loc"]), {"Model": config})) from None


def parse_set(text):
    """Split "Section.key=value" into ("Section.key", value), the value read as YAML."""
    target, equals, value = text.partition("=")
    if not equals or "." not in target:
        raise InputError(f"--set {text}: not of the form Section.key=value")
    try:
        return target.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: the value is not YAML") from None


def _explain(error, tree, path, flags):
    first = error.errors()[0]
    section, *rest = (str(part) for part in first["loc"]) if first["loc"] else ("",)
    leaf = rest[-1] if rest and not rest[-1].isdigit() else (rest[-2] if len(rest) > 1 else "")
    message = _message(first, first["loc"], tree)
    # A contradiction of several keys is put to the flag of one that it names.
    named = (flag for target, flag in flags.items() if re.search(rf"\b{target.partition('.')[2]}\b", message))
    place = flags.get(f"{section}.{leaf}") or (next(named, path) if first["type"] == "value_error" else path)
    return f"{place}: {message}"


def _message(first, loc, tree):
    loc = [part for i, part in enumerate(loc) if not (i == 1 and loc[0] == "Model" and part in _MODELS)]
    name = ".".join(str(part) for part in loc)
    kind, value = first["type"], first.get("input")
    if kind == "extra_forbidden":
        if len(loc) == 1:
            return f"unknown section {name}{_nearest(name, Experiment.model_fields)}"
        return f"unknown key {name}{_nearest(str(loc[-1]), _keys(loc[0], tree))}"
    if kind == "missing":
        return f"{name} is missing"
    if kind == "union_tag_not_found":
        return f"Model.struc is missing; it is one of {', '.join(_MODELS)}"
    if kind == "union_tag_invalid":
        return f"Model.struc is {value.get('struc')!r}; it is one of {', '.join(_MODELS)}"
    if kind == "value_error":
        return (f"{name}: " if name else "") + str(first["ctx"]["error"])
    return f"{name} is {value!r}; {first['msg'][0].lower()}{first['msg'][1:]}"


_MODELS = {"DDIM": DDIMModel, "iDDPM": IDDPMModel, "PF": PFModel, "PF_deep": PFDeepModel}


def _keys(section, tree):
    if section == "Model":
        return _MODELS[tree["Model"]["struc"]].model_fields
    return Experiment.model_fields[section].annotation.model_fields


def _nearest(name, known):
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently drop the first."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", name.start_mark)
            if name.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name.value!r} stands twice", name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)
