"""Files are written in one move: what fails leaves what was there."""

import numpy as np
import pytest

import gradscope
from gradscope.files import write_whole, writing


def test_what_fails_midway_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "a.npz"
    write_whole(path, b"before")

    def failing():
        with writing(path) as stream:
            stream.write(b"half of it")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_links_and_permissions_stay(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch(0o640)
    link.symlink_to(target)
    write_whole(link, b"after")
    assert link.is_symlink()
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"after", 0o640)


@pytest.mark.parametrize("name", ["a.json", "a.svg"])
def test_a_result_that_cannot_be_told_leaves_the_one_before(tmp_path, monkeypatch, name):
    """As on a disk that is full."""
    found = gradscope.analyze(cell="rnn", hidden=2, steps=3)
    save = found.save if name == "a.json" else found.figure("lag").save
    save(tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdopen", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert np.array_equal([path.name for path in tmp_path.iterdir()], [name])
