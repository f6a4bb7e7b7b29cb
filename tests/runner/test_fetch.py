"""Published files by name, from a server of this machine: the right file in its place, or one line and no file."""

import hashlib
import os
import random
import re
import resource
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import requests
from helpers import process

import pndm
from pndm.config.errors import InputError
from pndm.runner import servers

CONTENT = random.Random(0).randbytes(1_000_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def names(folder):
    """The files in a folder that is there or not."""
    return sorted(path.name for path in folder.glob("*"))


@pytest.fixture
def made_up(server, publish):
    """An entry with a hash whose file the server has; the path that it goes to."""
    server.files["/made_up"] = CONTENT
    return publish("made_up", f"{server.url}/made_up", hash=MD5, size=len(CONTENT))


def test_a_file_comes_whole_with_its_hash_beside_it_and_one_line(made_up, server, capsys):
    path = pndm.fetch("made_up")
    assert path == Path("temp/models/made_up.bin") and path.read_bytes() == CONTENT
    assert names(made_up.parent) == ["made_up.bin", "made_up.bin.sha256"]
    assert Path(f"{made_up}.sha256").read_text() == f"{SHA256}  made_up.bin\n"  # as `sha256sum -c` reads it
    said = (
        r"downloading 1 MB from 127.0.0.1:\d+ to temp/models/made_up.bin .network of numbers, by nobody; licence: none."
    )
    assert re.fullmatch(f"made_up: {said}\n", capsys.readouterr().err)
    assert pndm.fetch("made_up") == path and len(server.asked) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("tenth", range(1, 10))
def test_what_was_cut_is_resumed_by_the_next_call(made_up, server, tenth):
    server.cut, server.answers = tenth * 100_000, 1
    with pytest.raises(InputError, match=r"^made_up could not be downloaded \(127.0.0.1:\d+: status 503\); put it"):
        pndm.fetch("made_up")
    assert not made_up.exists()
    server.cut = server.answers = None
    assert pndm.fetch("made_up").read_bytes() == CONTENT
    assert tenth * 100_000 - servers.BLOCK < server.asked[-1][1] <= tenth * 100_000
    assert names(made_up.parent) == ["made_up.bin", "made_up.bin.sha256"]


def test_one_call_goes_on_as_long_as_more_comes(made_up, server):
    server.cut = 100_000
    assert pndm.fetch("made_up").read_bytes() == CONTENT
    starts = [start for _, start in server.asked]
    assert starts == sorted(set(starts)) and len(starts) >= 10


def test_a_server_that_does_not_resume_gives_the_file_from_its_beginning(made_up, server):
    server.cut, server.answers, server.ranges = 300_000, 1, False
    with pytest.raises(InputError):
        pndm.fetch("made_up")
    server.cut = server.answers = None
    assert pndm.fetch("made_up").read_bytes() == CONTENT
    server.ranges, server.cut = False, 300_000  # and always cut at the same place, it ends
    made_up.unlink()
    with pytest.raises(InputError, match="could not be downloaded"):
        pndm.fetch("made_up")


def test_a_wrong_file_whose_name_has_brackets_is_downloaded_anew(publish, server):
    path = publish("made_up", f"{server.url}/made_up", hash=MD5, path="models/made[1].bin")
    server.files["/made_up"] = bytes(len(CONTENT))
    with pytest.raises(InputError):
        pndm.fetch("made_up")
    assert not names(path.parent)
    server.files["/made_up"] = CONTENT
    assert pndm.fetch("made_up").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_file_that_changed_while_it_was_cut_is_downloaded_anew(publish, server, size):
    path = publish("made_up", f"{server.url}/made_up", hash=MD5, size=size)
    server.files["/made_up"] = bytes(len(CONTENT))
    server.cut, server.answers = 500_000, 1
    with pytest.raises(InputError):
        pndm.fetch("made_up")
    server.files["/made_up"], server.cut, server.answers = CONTENT, None, None
    assert pndm.fetch("made_up").read_bytes() == CONTENT
    assert names(path.parent) == ["made_up.bin", "made_up.bin.sha256"]


@pytest.mark.parametrize("longer", [True, False])
def test_without_a_hash_a_part_of_another_version_is_not_joined(publish, server, longer):
    publish("made_up", f"{server.url}/made_up")
    server.files["/made_up"] = bytes(2 * len(CONTENT) if longer else len(CONTENT))
    server.cut, server.answers = 1_500_000 if longer else 500_000, 1
    with pytest.raises(InputError):
        pndm.fetch("made_up")
    server.files["/made_up"], server.cut, server.answers = CONTENT, None, None
    server.modified = 0 if longer else 1e11  # a server may say it, or have less than the part
    assert pndm.fetch("made_up").read_bytes() == CONTENT


def test_a_whole_part_of_a_killed_run_is_taken(made_up, server):
    server.cut, server.answers = 999_999, 1
    with pytest.raises(InputError):
        pndm.fetch("made_up")
    (part,) = made_up.parent.glob(".made_up.bin.*.part")
    part.write_bytes(CONTENT)
    server.answers = None
    assert pndm.fetch("made_up").read_bytes() == CONTENT


def test_what_was_downloaded_is_moved_into_its_place_not_copied(made_up, server):
    """So that the file is never there in part; of a copy, a killed run would leave a beginning."""
    server.cut, server.answers = 999_999, 1
    with pytest.raises(InputError):
        pndm.fetch("made_up")
    (part,) = made_up.parent.glob(".made_up.bin.*.part")
    known, server.cut, server.answers = part.stat().st_ino, None, None
    assert pndm.fetch("made_up").stat().st_ino == known
    assert made_up.read_bytes() == CONTENT and not part.exists()


PAGE = (200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>log in</html>")


@pytest.mark.parametrize(
    ("given", "keys", "said"),
    [
        (CONTENT[::-1], {"hash": MD5}, f"its md5 is {hashlib.md5(CONTENT[::-1]).hexdigest()[:12]}…, not {MD5[4:16]}…"),
        (CONTENT[::-1], {"hash": f"sha256:{SHA256}"}, f"not {SHA256[:12]}… as published"),
        (CONTENT[:-1], {"size": len(CONTENT)}, "it has 999,999 bytes, not 1,000,000"),
        (CONTENT + b"x", {"size": len(CONTENT), "hash": MD5}, "it has 1,000,001 bytes, not 1,000,000"),
        (PAGE, {}, "it answers with a page, not with the file"),
        ((403, {}, b""), {}, "status 403"),
        ((200, {"Content-Type": "Application/XHTML+xml"}, b"<html>log in</html>"), {}, "it answers with a page"),
        ((203, {}, b"<html>log in</html>"), {}, "status 203, without the file"),
        ((206, {"Content-Range": "bytes 5-9/100"}, b"12345"), {}, "it does not go on where it was asked to"),
        ((302, {"Location": "http://[zz/x"}, b""), {}, "made_up could not be downloaded ("),
    ],
)
def test_what_is_not_the_file_is_no_file(publish, server, given, keys, said):
    path = publish("made_up", f"{server.url}/made_up", **keys)
    server.files["/made_up"] = given
    with pytest.raises(InputError, match=re.escape(said)):
        pndm.fetch("made_up")
    assert not path.parent.exists() or names(path.parent) == []


def test_an_empty_file_is_no_file(publish, server):
    path, server.length = publish("made_up", f"{server.url}/made_up"), False
    server.files["/made_up"] = (200, {"Transfer-Encoding": "chunked"}, b"0\r\n\r\n")
    with pytest.raises(InputError, match="it is empty"):
        pndm.fetch("made_up")
    assert not path.exists()


def test_a_short_part_is_not_taken_for_the_whole(publish, server):
    path = publish("made_up", f"{server.url}/made_up")
    server.files["/made_up"] = (206, {"Content-Range": "bytes 0-99/1000"}, b"x" * 100)
    with pytest.raises(InputError, match="could not be downloaded"):
        pndm.fetch("made_up")
    assert not path.exists()


@pytest.mark.parametrize("first", ["404", "page", "wrong", "closed", "stalled"])
def test_the_next_address_gives_what_the_first_does_not(publish, server, monkeypatch, first):
    server.files |= {"/mirror": CONTENT, "/page": PAGE, "/wrong": CONTENT[::-1]}
    address = "http://127.0.0.1:9/closed" if first == "closed" else f"{server.url}/{first}"
    if first == "stalled":
        monkeypatch.setattr(servers, "TIMEOUT", 0.3)
        server.files["/stalled"] = CONTENT
        server.stalled.clear()
        answer = server.answer
        monkeypatch.setattr(
            server, "answer", lambda h: (server.stalled.set() if h.path == "/mirror" else None, answer(h))
        )
    path = publish("made_up", address, f"{server.url}/mirror", hash=MD5)
    assert pndm.fetch("made_up").read_bytes() == CONTENT
    assert names(path.parent) == ["made_up.bin", "made_up.bin.sha256"]


def test_a_server_that_stalls_is_one_line(made_up, server, monkeypatch):
    monkeypatch.setattr(servers, "TIMEOUT", 0.3)
    server.stalled.clear()
    with pytest.raises(InputError, match=r"127.0.0.1:\d+: it stalled"):
        pndm.fetch("made_up")
    assert not made_up.exists()


def test_without_a_length_and_a_hash_nothing_could_be_told_of_the_file(publish, server):
    publish("made_up", f"{server.url}/made_up")
    server.files["/made_up"], server.length = CONTENT, False
    with pytest.raises(InputError, match="it does not say how long the file is"):
        pndm.fetch("made_up")
    publish("made_up", f"{server.url}/made_up", hash=MD5)
    assert pndm.fetch("made_up").read_bytes() == CONTENT


def test_the_first_download_is_trusted_and_a_later_change_refused(publish, server):
    path = publish("made_up", f"{server.url}/made_up")
    server.files["/made_up"] = CONTENT
    pndm.fetch("made_up")
    path.unlink()
    server.files["/made_up"] = CONTENT[::-1]
    with pytest.raises(InputError, match=f"not {SHA256[:12]}… as it was first downloaded here"):
        pndm.fetch("made_up")
    assert not path.exists()
    server.files["/made_up"] = CONTENT
    assert pndm.fetch("made_up").read_bytes() == CONTENT


def test_a_file_that_changed_on_the_disk_is_named(made_up, cli, server):
    assert cli("--runner", "fetch", "made_up")[0] == 0
    status, out, _ = cli("--runner", "fetch", "made_up")
    assert (status, out.splitlines()[0]) == (0, "there     network     temp/models/made_up.bin")
    made_up.write_bytes(CONTENT[:-1] + b"x")
    status, _, err = cli("--runner", "fetch", "made_up")
    assert status == 2 and err.count("\n") == 1
    assert "temp/models/made_up.bin: its md5 is" in err
    assert "delete it, and --runner fetch made_up downloads it again" in err


def test_a_place_that_is_given_by_hand_is_not_downloaded(made_up, server, publish, cli):
    place = "temp/models/made_up.bin"
    for flags in (["--model_path", place], ["--runner", "train", "--set", f"Train.start={place}"]):
        status, _, err = cli(*flags)
        assert (status, err.count("\n"), server.asked) == (2, 1, [])
        assert "no file temp/models/made_up.bin; " in err and "--runner fetch made_up, downloads it" in err
    with pytest.raises(InputError, match=r"no file temp/models/made_up.bin; made_up, or --runner fetch made_up"):
        pndm.PNDMPipeline.from_pretrained(place, config="digits.yml")
    publish("twin", f"{server.url}/twin", same=["made_up"])
    pndm.fetch("made_up")  # the twin's network is here
    status, _, err = cli("--model_path", "temp/models/twin.bin")
    assert status == 2 and "temp/models/made_up.bin" in err and "no file" not in err  # random bytes are no network


def environment():
    return {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}


@pytest.mark.slow
def test_two_processes_download_a_file_once(made_up, server, tmp_path):
    server.stalled.clear()
    runs = [process("--runner", "fetch", "made_up", cwd=tmp_path, env=environment()) for _ in range(2)]
    while not server.asked:
        assert all(run.poll() is None for run in runs), [run.communicate() for run in runs]
    server.stalled.set()  # half of it was sent, then the answer ends: the one that downloads it asks for the rest
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert made_up.read_bytes() == CONTENT
    assert [start > 0 for _, start in server.asked] == [False, True]
    assert sum("downloading" in err for _, err in outputs) == 1


def test_a_full_disk_is_one_line_and_leaves_nothing(made_up, server, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))  # noqa: E731
    run = process("--runner", "fetch", "made_up", cwd=tmp_path, env=environment(), preexec_fn=limit)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 2 and err.splitlines()[-1] == "main.py: temp/models/made_up.bin: File too large"
    assert names(made_up.parent) == []


def test_a_file_that_does_not_fit_is_not_begun(made_up, server, cli, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**6, 1, 999_999)
    monkeypatch.setattr(servers.shutil, "disk_usage", lambda _: usage)
    status, _, err = cli("--runner", "fetch", "made_up")
    assert status == 2
    assert err.splitlines()[-1].startswith("main.py: temp/models/made_up.bin: 1 MB do not fit on the disk")
    assert names(made_up.parent) == []


class TestDrive:
    """gdown against a server that does what Google Drive does."""

    ID = "made-up-identifier-of-a-file-1"

    @pytest.fixture
    def drive(self, server, monkeypatch):
        pytest.importorskip("gdown")
        request = requests.Session.request

        def here(session, method, url, *args, **options):
            return request(session, method, url.replace("https://drive.google.com", server.url), *args, **options)

        monkeypatch.setattr(requests.Session, "request", here)
        form = f'<form id="download-form" action="{server.url}/download" method="get"><input type="hidden" name="id" '
        form += f'value="{self.ID}"><input type="hidden" name="confirm" value="t"></form>'
        page = {"Content-Type": "text/html; charset=utf-8"}
        entry = f'<a href="https://drive.google.com/file/d/{self.ID}/view?usp=drive_web">made_up.ckpt</a>'
        folder = f"<html><head><title>release</title></head><body>{entry}</body></html>"
        file = {"Content-Type": "application/octet-stream", "Content-Disposition": 'attachment; filename="x.ckpt"'}
        server.files |= {
            f"/uc?id={self.ID}": (200, page, f"<html>cannot be scanned for viruses{form}</html>".encode()),
            "/embeddedfolderview?id=made-up-folder": (200, page, folder.encode()),
            f"/download?id={self.ID}&confirm=t": (200, file, CONTENT),
        }
        return server

    @pytest.mark.parametrize("address", [f"drive:{ID}", "drive:made-up-folder/made_up.ckpt"])
    def test_a_file_comes_through_the_page_that_asks_for_confirmation(self, drive, publish, address):
        path = publish("made_up", address, hash=MD5)
        assert pndm.fetch("made_up").read_bytes() == CONTENT
        assert names(path.parent) == ["made_up.bin", "made_up.bin.sha256"]

    def test_what_was_cut_is_resumed(self, drive, publish):
        path = publish("made_up", f"drive:{self.ID}", hash=MD5)
        drive.cut = 700_000
        assert pndm.fetch("made_up").read_bytes() == CONTENT
        assert 0 < drive.asked[-1][1] <= 700_000
        assert names(path.parent) == ["made_up.bin", "made_up.bin.sha256"]

    def test_a_page_that_is_all_there_is_is_one_line(self, drive, publish):
        path = publish("made_up", f"drive:{self.ID}")
        refused = b'<html><p class="uc-error-subcaption">Too many users have viewed this file.</p></html>'
        drive.files[f"/uc?id={self.ID}"] = (200, {"Content-Type": "text/html"}, refused)
        with pytest.raises(InputError, match=r"Google Drive: .*Too many users"):
            pndm.fetch("made_up")
        assert names(path.parent) == []

    def test_a_folder_without_the_file_says_what_it_has(self, drive, publish):
        publish("made_up", "drive:made-up-folder/other.ckpt")
        with pytest.raises(InputError, match=r"the folder has no other.ckpt, but made_up.ckpt"):
            pndm.fetch("made_up")

    def test_without_gdown_one_line_says_what_to_install(self, publish, server, monkeypatch):
        publish("made_up", f"drive:{self.ID}")
        monkeypatch.setitem(sys.modules, "gdown", None)
        with pytest.raises(InputError, match=r"Google Drive: it needs gdown: pip install gdown"):
            pndm.fetch("made_up")


def test_offline_nothing_is_asked(made_up, server, cli):
    status, out, err = cli("--runner", "fetch", "made_up", "--offline")
    os.environ.pop("HF_HUB_OFFLINE")
    assert status == 2 and "by hand   network     no file temp/models/made_up.bin; it is at http://127.0.0.1" in out
    assert "(127.0.0.1" in out and ": offline)" in out
    assert err == "main.py: 1 of 1 cannot be had: network\n"
    assert server.asked == [] and not made_up.exists()


def test_the_same_network_under_another_name_serves_the_one_with_a_hash_first(made_up, publish, server):
    server.files["/own"] = CONTENT
    own = publish("own", f"{server.url}/own", same=["made_up"])
    assert pndm.fetch("own") == Path("temp/models/made_up.bin")
    assert [path for path, _ in server.asked] == ["/made_up"]
    made_up.unlink()
    server.files.pop("/made_up")
    assert pndm.fetch("own") == Path("temp/models/own.bin") and own.exists()


def test_an_unknown_name_is_one_line(publish):
    publish("made_up", "http://127.0.0.1:9/x")
    with pytest.raises(InputError, match=r"^nothing is published as made_ups; did you mean made_up\?$"):
        pndm.fetch("made_ups")
    with pytest.raises(InputError, match=r"config/published\.yml lists what is"):
        pndm.fetch("qqqq")
