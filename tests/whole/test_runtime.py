"""The compilation cache is private, bounded, and never in the way."""

import os
import stat
import subprocess
import sys

import jax
import pytest

import gradscope
from gradscope import machine


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    """JAX's settings are the process's: put them back."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def use(folder, monkeypatch):
    """The cache folder JAX is told to use when ours is ``folder``."""
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("GRADSCOPE_CACHE_DIR", str(folder))
    machine.use_compilation_cache()
    return jax.config.jax_compilation_cache_dir


def test_the_folder_is_made_private(tmp_path, monkeypatch):
    folder = tmp_path / "deep" / "cache"
    assert use(folder, monkeypatch) == str(folder / "jax")
    for private in (folder, folder / "jax"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_a_folder_others_may_write_is_not_used(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)  # whoever may write there could plant code
    assert use(tmp_path, monkeypatch) is None
    tmp_path.chmod(0o700)
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax").chmod(0o777)
    assert use(tmp_path, monkeypatch) is None


def test_what_is_not_a_folder_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert use(tmp_path / "file", monkeypatch) is None
    assert use(tmp_path / "file" / "below", monkeypatch) is None


def test_the_oldest_entries_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CACHE_BYTES", 250)
    monkeypatch.setattr(machine, "_unpacker", lambda: bytes)
    folder = tmp_path / "jax"
    folder.mkdir(mode=0o700)
    for age in range(4):
        entry = folder / f"entry{age}-cache"
        entry.write_bytes(bytes(100))
        os.utime(entry, (1e9 - age, 1e9 - age))
    use(tmp_path, monkeypatch)
    assert sorted(p.name for p in folder.iterdir()) == ["entry0-cache", "entry1-cache"]


def test_only_entries_of_jax_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CACHE_BYTES", 0)
    folder = tmp_path / "jax"
    folder.mkdir(mode=0o700)
    mine = [tmp_path / "thesis.tex", tmp_path / "x-cache", folder / "notes"]
    for file in [*mine, folder / "x-cache", folder / "x-atime"]:
        file.write_text("precious")
    use(tmp_path, monkeypatch)
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "checked"]
    assert sorted(left) == sorted(mine)


def test_jax_names_its_entries_so_and_reads_all_that_are_left(tmp_path, monkeypatch):
    """Those that are cut off, or something else, are gone at the next start, and no warning is of them."""
    command = [
        sys.executable,
        "-m",
        "gradscope",
        "analyze",
        "--hidden",
        "2",
        "--steps",
        "3",
        "--only",
        "gain",
    ]

    def said():
        env = os.environ | {"GRADSCOPE_CACHE_DIR": str(tmp_path)}
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stderr

    said()
    entries = list((tmp_path / "jax").iterdir())
    assert entries
    assert all(entry.name.endswith(("-cache", "-atime")) for entry in entries)
    sound = [entry.read_bytes() for entry in entries]
    use(tmp_path, monkeypatch)  # nothing is wrong with them
    assert [entry.read_bytes() for entry in entries] == sound
    (other := tmp_path / "jax" / "other-cache").write_text("junk")
    entries[0].write_bytes(sound[0][: len(sound[0]) // 2])
    assert "cache" not in said()
    assert not other.exists()
    assert len(entries[0].read_bytes()) > len(sound[0]) // 2  # compiled again, and kept


def test_jaxs_own_variable_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    assert use(tmp_path / "ours", monkeypatch) is None
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GRADSCOPE_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/gradscope"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/gradscope"),
    ],
)
def test_where_it_is(monkeypatch, variables, expected):
    monkeypatch.delenv("GRADSCOPE_CACHE_DIR", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(machine.cache_folder()) == expected


@pytest.mark.parametrize("platform", ["gpu", "abacus"])
def test_a_platform_that_is_not_there(platform):
    with pytest.raises(gradscope.InputError, match=platform):
        machine.find_devices(platform)


def test_backend_is_that_of_the_device():
    analysis = gradscope.analyze(hidden=2, input_size=1, steps=3, platform="cpu")
    assert analysis.problem["backend"] == "cpu"
    assert jax.config.jax_default_device is None, "the caller's JAX stays as it was"
