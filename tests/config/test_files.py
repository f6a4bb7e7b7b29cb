"""Files that appear whole or not at all."""

from pndm.config import files


def test_two_processes_that_write_one_file_do_not_meet(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    with files.aside(path) as first:
        first.write_text("first")
        monkeypatch.setattr(files.os, "getpid", lambda: 1)  # as in another process
        with files.aside(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
