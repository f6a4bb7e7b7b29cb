"""The manifest of published files: what it says fits the experiments and tables, and wrong lines are refused."""

import pytest
import yaml
from helpers import ROOT

from pndm.config import published
from pndm.config.errors import InputError
from pndm.config.load import load, load_table

EXPERIMENTS = sorted(path.name for path in (ROOT / "config").glob("*_*.yml"))
ENTRY = {
    "what": "network",
    "of": "x",
    "by": "y",
    "licence": "z",
    "source": "w",
    "path": "models/x",
    "addresses": ["drive:1"],
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_published_experiment_finds_its_network(name):
    entry = published.find(load(name).Sample.model_path)
    assert entry.what == "network" and name in entry.experiments
    assert all(name in other.experiments for other in published.same_network(entry))


@pytest.mark.parametrize("path", sorted((ROOT / "config/tables").glob("*.yml")), ids=lambda path: path.stem)
def test_every_table_finds_its_statistics(path):
    _, table = load_table(str(path))
    if given := table.sample.get("statistics"):
        assert path.stem in published.find(given).tables
        assert path.stem in published.named("pt_inception-2015-12-05").tables


def test_every_line_says_its_source_and_lies_in_a_place_of_its_own():
    known = published.manifest()
    files = [entry.file for entry in known.values() if entry.file]
    assert len(known) >= 30 and len(set(files)) == len(files)
    assert all(entry.source and entry.licence and entry.by for entry in known.values())
    assert all(other in known for entry in known.values() for other in entry.same)
    assert {entry.file.parent.name for entry in known.values() if entry.file} == {"models", "stats"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": "../x/y"}, "path is '../x/y'; value error, it must be FOLDER/NAME, below temp/"),
        ({"path": "/etc/passwd"}, "below temp/"),
        ({"path": "published.yml"}, "below temp/"),
        ({"path": None}, "path is missing"),
        ({"addresses": ["ftp://x/y"]}, "an address is https://"),
        ({"addresses": []}, "addresses"),
        ({"addresses": ["hub:a/b"]}, "leave out path"),
        ({"hash": "md5:abc"}, "a hash is md5: or sha256:"),
        ({"size": 0}, "size is 0"),
        ({"sise": 1}, "unknown key sise; did you mean size?"),
        ({"what": "images"}, "what is 'images'"),
    ],
)
def test_wrong_lines_of_ones_own_are_refused(tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temp").mkdir()
    (tmp_path / "temp/published.yml").write_text(yaml.safe_dump({"mine": ENTRY | change}))
    with pytest.raises(InputError, match=r"temp/published.yml: mine: ") as caught:
        published.manifest()
    assert said.replace("value error, ", "") in str(caught.value).replace("value error, ", "")


def test_ones_own_lines_go_over_the_projects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temp").mkdir()
    (tmp_path / "temp/published.yml").write_text(
        yaml.safe_dump({"ema_cifar10": ENTRY, "mine": ENTRY | {"path": "a/b"}})
    )
    assert published.named("ema_cifar10").addresses == ["drive:1"]
    assert published.find("temp/a/b").name == "mine"
    assert published.named("cifar10").hash == "md5:82ed3067fd1002f5cf4c339fb80c4669"
