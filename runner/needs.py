"""What experiments need that is not in the repository: what is here, what can be downloaded, what has to be put there.

    python main.py --runner check --table celeba
    python main.py --runner fetch --table celeba
    python main.py --runner fetch ema_cifar10

`reproduce` asks the same before anything else.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pndm.config import published
from pndm.config.errors import InputError
from pndm.config.files import bundled
from pndm.dataset import missing, open_dataset
from pndm.dataset.readers import MEGABYTES
from pndm.model import diffusers
from pndm.runner import fetch
from pndm.runner.measure.features import INCEPTION, inception_file

HERE, ONLINE, BY_HAND = "there", "online", "by hand"


class Need(NamedTuple):
    """Something that a run needs: the file and its place, or what to put where.

    key: of the experiment, what names it. bytes: of the download. get: downloads it; verifies what is there.
    """

    what: str
    state: str
    how: str
    key: str
    bytes: int = 0
    get: Callable = lambda: None


def needs_of(experiments, training=False):
    """The `Need`s of some experiments, each once. training: they will train, too."""
    distinct = {}
    for e in experiments:
        s = e.Sample
        distinct[s.model_path, s.features, s.statistics, s.inception_path, repr(e.Dataset)] = e
    needs = [need for experiment in distinct.values() for need in _needs(experiment)]
    if training:
        starts = dict.fromkeys(e.Train.start for e in experiments if e.Train.start)
        needs += [_file("start", "Train.start", start) for start in starts]
    return list({(need.what, need.how): need for need in needs}.values())


def _needs(experiment):
    s = experiment.Sample
    if s.model_path is None:
        yield Need("network", BY_HAND, "no checkpoint is given, and the experiment names none", "Sample.model_path")
    else:
        yield _file("network", "Sample.model_path", s.model_path)
    if s.features == "inception":
        yield _inception(s.inception_path)
    if s.features != "none" and s.statistics != "dataset":
        need = _file("statistics", "Sample.statistics", s.statistics)
        more = "; --runner stats makes it of the dataset" if need.state == BY_HAND else ""
        yield need._replace(how=need.how + more)
    elif s.features != "none":
        yield _dataset(experiment.Dataset)


def _file(what, key, given):
    """The `Need` of a file that is given by its path or published name."""
    entry = published.find(given)
    if path := bundled(given):
        return Need(what, HERE, str(path), key, get=partial(fetch.verify, entry) if entry else lambda: None)
    if entry:
        return _published(what, key, entry)
    if what == "network" and diffusers.is_hub_name(given):
        return _published(what, key, published.of_hub(given))
    return Need(what, BY_HAND, f"no file {given}", key)


def _published(what, key, entry):
    if found := fetch.held(entry):
        return Need(what, HERE, str(found), key, 0, partial(fetch.verify, entry))
    if reachable := [(other, address) for other, address in fetch.sources(entry) if not fetch.obstacle(address)]:
        other, address = reachable[0]
        said = f"{other.place}, {other.weight} from {published.host(address)}"
        return Need(what, ONLINE, said, key, other.bytes, partial(fetch.provide, entry))
    said = f"no file {entry.place}; it is at {fetch.links(entry)} ({fetch.obstacles(entry)})"
    return Need(what, BY_HAND, said, key)


def _inception(given):
    key = "Sample.inception_path"
    try:
        file = inception_file(given)
    except InputError as error:
        return Need("Inception", BY_HAND, str(error), key)
    return Need("Inception", HERE, str(file), key) if file else _published("Inception", key, published.named(INCEPTION))


def _dataset(section):
    if not (why := missing(section)):
        return Need("dataset", HERE, section.dataset, "Dataset.path")
    if section.dataset not in MEGABYTES or published.offline():
        return Need("dataset", BY_HAND, why, "Dataset.path")
    megabytes = MEGABYTES[section.dataset]
    said = f"{section.dataset}, about {megabytes} MB by torchvision"
    return Need("dataset", ONLINE, said, "Dataset.path", megabytes * 10**6, partial(open_dataset, section))


def show(needs):
    """Print needs, a line each, and their sum."""
    for need in needs:
        print(f"{need.state:<10}{need.what:<12}{need.how}")
    counts = [f"{sum(need.state == state for need in needs)} {state}" for state in (HERE, ONLINE, BY_HAND)]
    total = sum(need.bytes for need in needs)
    print(", ".join(counts) + f"; about {total / 1e6:,.0f} MB to download" * bool(total))


def obtain(names, needs, plan):
    """The runners check and fetch: print what is wanted, then download it, and verify what is there.

    names: of the manifest. needs: `Need`s of experiments. Without both, all of the manifest is printed. plan: nothing
    is downloaded. Raises InputError, at the end if something cannot be had.
    """
    if not names and not needs:
        for name, entry in published.manifest().items():
            state = HERE if entry.file and entry.file.is_file() else entry.weight
            print(f"{name:<36}{state:<22}{entry.what} of {entry.of}")
        print("--runner fetch NAME downloads one, --runner fetch --table T what a table needs")
        return
    wanted = [published.named(name) for name in names]
    needs = [*(_published(entry.what, "paths", entry) for entry in wanted), *needs]
    show(needs)
    for need in needs:
        if not plan:
            need.get()
    if wrong := [need.what for need in needs if need.state == BY_HAND]:
        raise InputError(f"{len(wrong)} of {len(needs)} cannot be had: {', '.join(wrong)}")


def require(experiments):
    """Download all that experiments need and that is not here. Raises InputError that names all that cannot be had."""
    needs = needs_of(experiments)
    wrong = [need for need in needs if need.state == BY_HAND]
    if len(wrong) == 1:
        raise InputError(wrong[0].how, wrong[0].key)
    if wrong:
        raise InputError(f"{len(wrong)} things are missing. " + ". ".join(f"{need.what}: {need.how}" for need in wrong))
    for need in needs:
        if need.state == ONLINE:
            need.get()
