"""The cells of the demo page: counted calls, distances, mixed noise, cancelling, bounds; without Gradio."""

import base64
import math
import runpy
import shlex
import threading
from pathlib import Path

import pytest
import torch
from helpers import ROOT, Tiny, image_files

from pndm.config.errors import InputError
from pndm.config.load import load, load_solver
from pndm.demo import solver_files
from pndm.model import checkpoint
from pndm.runner.build import sampling_of
from pndm.runner.demo import cells as demo_cells
from pndm.runner.demo.app import Sessions
from pndm.runner.demo.cells import Artist, Stopped
from pndm.runner.demo.commands import Origin, commands
from pndm.runner.demo.page import source_of
from pndm.runner.demo.request import Row, request_of
from pndm.runner.table.flow import exact_flow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def artist(tiny):
    return Artist(load(str(tiny.config)), CPU)


def drawn(artist, *values, **more):
    """(row label, calls) → the final cell of a request."""
    return {(cell.row.label, cell.asked): cell for cell in artist.draw(request_of(*values, **more))}


def test_a_cell_spends_at_most_its_column_and_says_what_it_spent(artist):
    cells = drawn(artist, "DDIM,F-PNDM,PF", "uniform", "3,4,12", images=2)
    found = {place: (cell.steps, cell.nfe, len(cell.times)) for place, cell in cells.items()}
    assert [found["DDIM", calls] for calls in (3, 4, 12)] == [(3, 3, 3), (4, 4, 4), (12, 12, 12)]
    # Its first steps take more than one call; the last Runge-Kutta step of a short run has no calls at its end.
    assert all(found["F-PNDM", calls][1] <= calls for calls in (3, 4, 12))
    assert all(nfe == times for method, calls in found if method != "PF" for _, nfe, times in [found[method, calls]])
    assert len({found["PF", calls] for calls in (3, 4, 12)}) == 1  # it chooses its own calls


def test_a_method_that_cannot_be_so_cheap_says_what_it_takes(tiny):
    published = Artist(load(str(tiny.config), {"Sample.profile": ("a test", "published")}), CPU)
    cell = drawn(published, "S-PNDM", "uniform", "1", images=1)["S-PNDM", 1]
    assert cell.images is None
    assert cell.message == "S-PNDM spends 2 calls at least"


def test_distances_are_those_of_the_exact_flow_and_stochastic_methods_have_none(artist, tiny):
    cells = drawn(artist, "DDIM,DDPM", "trailing", "4,30", images=2)
    experiment = load(str(tiny.config), {"Sample.spacing": ("a test", "trailing")})
    ends = exact_flow(experiment, tiny.network, CPU, 2, 1e-6)
    for calls in (4, 30):
        cell = cells["DDIM, trailing", calls]
        apart = (cell.x.double() - ends).square().mean().sqrt().item()
        assert cell.distance == pytest.approx(apart, abs=demo_cells.LEAST)
        assert cell.exact.shape == cell.images.shape == (2, 1, 8, 8)
        assert cells["DDPM, trailing", calls].distance is None
        assert cells["DDPM, trailing", calls].exact is None
    assert cells["DDIM, trailing", 30].distance < cells["DDIM, trailing", 4].distance


def test_an_adaptive_method_is_near_the_flow_that_it_follows():
    cells = drawn(Artist(load("digits.yml"), CPU), "PF,DDIM", "uniform", "40", images=2)
    assert cells["PF", 40].distance < demo_cells.LEAST < cells["DDIM", 40].distance


def test_flows_from_several_times_at_once_are_those_from_each(artist, tiny):
    together = drawn(artist, "DDIM", "uniform", "1,4,8", images=2, seed=5)
    for calls in (1, 4, 8):
        alone = drawn(Artist(load(str(tiny.config)), CPU), "DDIM", "uniform", [calls], images=2, seed=5)
        held, other = together["DDIM", calls], alone["DDIM", calls]
        assert torch.equal(held.images, other.images)
        assert held.distance == pytest.approx(other.distance, abs=demo_cells.LEAST)


def test_the_strip_holds_few_predicted_images_and_ends_at_the_result(artist):
    cell = drawn(artist, "DDIM", "uniform", "50", images=1)["DDIM", 50]
    assert len(cell.times) == 50
    assert list(cell.times) == sorted(cell.times, reverse=True)
    assert 2 <= len(cell.strip) <= demo_cells.STRIP
    one = drawn(artist, "DDIM", "uniform", "5", images=1)["DDIM", 5]
    assert len(one.strip) == 5
    assert torch.equal(one.strip[-1][1], one.images[0])  # DDIM's last step goes to the predicted image itself


def test_mixed_noise_is_standard_normal_and_ends_at_either_seed(artist):
    at = {share: drawn(artist, "DDIM", "uniform", "4", 7, 2, 8, share)["DDIM", 4] for share in (0.0, 0.3, 1.0)}
    assert torch.equal(at[0.0].images, drawn(artist, "DDIM", "uniform", "4", seed=7, images=2)["DDIM", 4].images)
    assert torch.equal(at[1.0].images, drawn(artist, "DDIM", "uniform", "4", seed=8, images=2)["DDIM", 4].images)
    noise = at[0.3].sampling.noise(range(400), CPU)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    seven = sampling_of(artist.experiment)
    turned = (noise * type(seven).noise(at[0.0].sampling, range(400), CPU)).mean().item()
    assert turned == pytest.approx(math.cos(0.3 * math.pi / 2), abs=0.02)


def test_noise_of_a_stochastic_method_is_not_mixed(artist):
    cell = drawn(artist, "DDPM", "uniform", "4", share=0.5)["DDPM", 4]
    assert cell.images is None
    assert "DDPM draws noise in its steps" in cell.message


def test_cancelling_stops_at_the_next_network_call(artist):
    stop, seen = threading.Event(), []

    def watch(images):
        seen.append(images)
        if len(seen) == 3:
            stop.set()

    with pytest.raises(Stopped):
        list(artist.draw(request_of("DDIM", "uniform", "10"), stop, watch))
    assert len(seen) == 3


def test_a_network_that_breaks_leaves_a_line_in_its_cells(tiny, tmp_path):
    broken = Tiny(tmp_path)
    state = broken.network.state_dict()
    name = next(iter(state))
    state[name].fill_(math.nan)
    checkpoint.save(broken.model, state, {"weights": "raw"})
    cells = drawn(Artist(load(str(broken.config)), CPU), "DDIM,PF", "uniform", "4", images=1)
    assert all("not finite" in cell.message for cell in cells.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "spacing", "share", "ways"),
    [
        ("F-PNDM", "uniform", 0.0, ["command line", "Python", "diffusers"]),
        ("DPM-Solver++2M", "logsnr", 0.0, ["command line", "Python", "diffusers"]),
        ("DDPM", "karras", 0.0, ["command line", "Python"]),
        ("PF", "uniform", 0.0, ["command line", "Python"]),
        ("S-PNDM", "trailing", 0.35, ["Python", "diffusers"]),
    ],
)
def test_what_is_copied_makes_the_very_bytes_of_the_cell(artist, tiny, check_bytes, method, spacing, share, ways):
    request = request_of(method, spacing, "13", seed=3, images=3, share=share)
    (cell,) = {cell.asked: cell for cell in artist.draw(request)}.values()
    found = commands(cell, request.noise, Origin(str(tiny.config), "cpu", {"Sample.model_path": str(tiny.model)}))
    assert [name for name, _ in found] == ways
    check_bytes(found, cell)


@pytest.mark.slow
def test_what_is_copied_of_a_solver_file_makes_the_very_bytes_of_the_cell(check_bytes):
    request = request_of("searched", "uniform", "6", seed=3, images=3, files="digits_nfe{nfe}")
    (cell,) = {cell.asked: cell for cell in Artist(load("digits.yml"), CPU).draw(request)}.values()
    found = commands(cell, request.noise, Origin("digits.yml", overrides={"Sample.profile": "published"}))
    assert [name for name, _ in found] == ["command line", "Python", "diffusers"]
    check_bytes(found, cell)


@pytest.fixture
def check_bytes(cli, tmp_path, monkeypatch):
    """check_bytes(found, cell): run what is copied, and compare the files.

    In this process, each text in an empty folder; `test_live.py` runs one in a shell.
    """

    def check(found, cell):
        for name, text in found:
            folder = tmp_path / name.replace(" ", "")
            folder.mkdir()
            monkeypatch.chdir(folder)
            if name == "command line":
                program, script, *flags = shlex.split(text.replace("\\\n", " "))
                assert (program, script) == ("python", "main.py")
                status, _, err = cli(*flags)
                assert status == 0, err
            else:
                Path("program.py").write_text(text, encoding="utf-8")
                runpy.run_path("program.py", run_name="__main__")
            made = image_files(next(folder.glob("temp/demo/*"), folder))
            assert [source_of(image) for image in cell.images] == [address(made[file]) for file in sorted(made)]

    return check


def address(data):
    """The bytes of a PNG file as `source_of` gives them."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (("F-PNDN", "uniform", "10"), "no method 'F-PNDN'; did you mean F-PNDM?"),
        (("", "uniform", "10"), "methods: none is given"),
        (("DDIM", "log", "10"), "no spacing 'log'"),
        (("DDIM", "uniform", "0"), "calls is '0'; it must be a whole number from 1 to 1000"),
        (("DDIM", "uniform", "1e3"), "calls is '1e3'"),
        (("DDIM", "uniform", ",".join(map(str, range(1, 12)))), "11 numbers of calls"),
        (("DDIM", "uniform", "10", -1), "seed is -1"),
        (("DDIM", "uniform", "10", 0, 17), "images is 17; it must be a whole number from 1 to 16"),
        (("DDIM", "uniform", "10", 0, 4, 1, "nan"), "share is 'nan'"),
        (("DDIM", "uniform", "1000,999,998", 0, 16), "this asks for 47,952 images × calls; at most 20,000"),
        (("PF,DDIM", "uniform,quad,trailing,logsnr,karras", "10", 0, 16), None),
        ((["DDIM"] * 101, "uniform", "10"), "methods: 101 are given"),
        (({"a": 1}, "uniform", "10"), "methods: none is given"),
        ((["DDIM", ["x"]], "uniform", "10"), "no method ['x']"),
        (("DDIM", "uniform", [True]), "calls is True"),
        (("DDIM", "uniform", "10", 3, 4, 3, 0.5), "the second seed is 3, as the first; a mixture needs two"),
    ],
)
def test_wrong_requests_are_one_line(values, line):
    if line is None:
        assert len(request_of(*values).rows) == 6  # PF has no spacing
        return
    with pytest.raises(InputError) as error:
        request_of(*values)
    assert str(error.value).startswith(line)
    assert len(str(error.value)) < 500


def test_a_row_of_solver_files_has_the_file_of_each_column():
    artist, files = Artist(load("digits.yml"), CPU), "digits_nfe{nfe}"
    request = request_of("searched,DDIM", "uniform,quad", "5,11", images=2, files=files)
    assert [row.label for row in request.rows] == ["searched", "DDIM", "DDIM, quad"]
    cells = {(cell.row.label, cell.asked): cell for cell in artist.draw(request)}
    assert cells["searched", 5].nfe == 5
    assert cells["searched", 5].distance < cells["DDIM", 5].distance / 2
    *starts, _ = load_solver("digits_nfe5").times  # of x; the network is told others
    assert cells["searched", 5].times == tuple(starts)
    _, nearly = cells["searched", 5].strip[-1]
    assert (nearly.int() - cells["searched", 5].images[0].int()).abs().float().mean() < 40  # grey levels of 255
    assert "no file digits_nfe11.yml" in cells["searched", 11].message


def test_solver_files_of_another_network_are_refused_whatever_was_loaded_before(tiny):
    request = request_of(
        "DDIM,searched", "uniform", "5", images=1, files=str(ROOT / "config/solvers/digits_nfe{nfe}.yml")
    )
    made, refused = list(Artist(load(str(tiny.config)), CPU).draw(request))[:2]
    assert made.images is not None
    assert refused.images is None
    assert "another network" in refused.message


def test_without_solver_files_there_is_no_such_row(tmp_path):
    with pytest.raises(InputError, match="no method 'searched'"):
        request_of("searched", "uniform", "5")
    assert solver_files(None, "digits.yml") == "digits_nfe{nfe}"
    assert solver_files(None, "ddim_celeba.yml") is None
    with pytest.raises(InputError, match=r"has no \{nfe\}"):
        solver_files("digits_nfe5", "digits.yml")


def test_rows_are_methods_times_spacings_each_once():
    request = request_of("DDIM, DDIM PF", ["uniform", "logsnr"], "20,10,10")
    assert request.rows == (Row("DDIM", "uniform"), Row("DDIM", "logsnr"), Row("PF", "uniform"))
    assert request.calls == (10, 20)


def test_a_session_has_one_run_at_a_time():
    sessions = Sessions()
    event = sessions.begin("one")
    with pytest.raises(InputError, match="a run of this page is at work"):
        sessions.begin("one")
    sessions.begin("two")
    sessions.stop("one")
    assert event.is_set()
    sessions.end("one")
    assert not sessions.begin("one").is_set()
