"""Model files from strangers: nothing in them runs, and they end in one line, soon and in little memory."""

from __future__ import annotations

import pytest
from oracles import hostile
from oracles.few import few
from oracles.hostile import all_read, damage, refusal, stranger, truncated
from oracles.models import read_layer

HOSTILE = dict(hostile.hostile())
SOUND = hostile.sound()


# Seconds each.
LARGE = {"objects by the hundred thousand", "long name above many", "many layers"}


@pytest.mark.parametrize("name", few(HOSTILE, *(HOSTILE.keys() - LARGE)))
def test_hostile_model_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, words = stranger(tmp_path, HOSTILE[name])
    assert words in refusal(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_hostile_models_take_little_memory_and_time(tmp_path):
    assert not all_read(tmp_path, HOSTILE)


@pytest.mark.parametrize("suffix", SOUND)
def test_models_truncated_anywhere(suffix, tmp_path):
    truncated(SOUND[suffix], tmp_path / f"model{suffix}")


@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_damaged_models(suffix, tmp_path):
    assert damage(SOUND[suffix], 300, 0, tmp_path / f"model{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_thousands_of_damaged_models(suffix, tmp_path):
    assert damage(SOUND[suffix], 2_000, 1, tmp_path / f"model{suffix}")


def test_max_size_lets_more_through_and_less(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(SOUND[".pt"])
    assert "--max-size" in refusal(path, max_size=100)
    assert read_layer(path, layer="l0", max_size=10**6).hidden == 4
