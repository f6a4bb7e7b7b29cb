"""The docstrings of the public names: each has an example, the examples run, and the reference is made of them."""

import doctest
import importlib.util
import inspect
import sys

import pytest
from helpers import ROOT

import pndm
from pndm.runner.solver import methods, options
from pndm.tools import reference

VARIABLES = {"METHODS": methods, "OPTIONS": options}  # their docstrings stand below them


def docstring(name):
    """The docstring of a public name; of a variable the text below it."""
    if name in VARIABLES:
        return inspect.getsource(VARIABLES[name]).split(f"\n{name}")[1].split('"""')[1]
    return inspect.getdoc(getattr(pndm, name))


@pytest.mark.parametrize("name", pndm.__all__)
def test_the_example_of_a_public_name_runs(name, monkeypatch):
    if name == "MethodScheduler" and importlib.util.find_spec("diffusers") is None:
        pytest.skip("needs diffusers")
    monkeypatch.chdir(ROOT)
    examples = doctest.DocTestParser().get_doctest(docstring(name), {}, name, None, None)
    assert examples.examples, f"{name} has no example"
    failed = doctest.DocTestRunner().run(examples).failed
    assert not failed


@pytest.mark.parametrize("name", sorted(set(pndm.__all__) - VARIABLES.keys()))
def test_public_names_and_their_own_methods_say_what_they_are(name):
    thing = getattr(pndm, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        own = {inner: value for inner, value in vars(thing).items() if inspect.isroutine(value)}
        silent = [
            inner
            for inner, value in own.items()
            if not inner.startswith("_") and not inspect.getdoc(getattr(thing, inner))
        ]
        assert not silent, f"{name}: {', '.join(silent)}"


@pytest.fixture
def names_not_used_yet():
    """Takes the names away again that the reference puts into the package: a later test may be of their import."""
    before = set(vars(pndm))
    yield
    for name in set(pndm.__all__) & set(vars(pndm)) - before:
        delattr(pndm, name)


@pytest.mark.usefixtures("names_not_used_yet")
def test_the_reference_is_made_without_a_warning(tmp_path, capsys):
    pytest.importorskip("pdoc")
    assert reference.main([str(tmp_path)]) == 0
    page = (tmp_path / "pndm.html").read_text(encoding="utf-8")
    assert [name for name in pndm.__all__ if f'id="{name}"' not in page] == []
    assert f"{len(pndm.__all__)} public names" in capsys.readouterr().out


def test_without_pdoc_the_reference_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pdoc", None)
    assert reference.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "reference.py: pdoc is not installed: pip install .[docs]\n"
