"""Model files from strangers: nothing in them runs, and they end in one line, soon and in little memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest
from oracles import hostile
from oracles.models import read_layer

from gradscope import checkpoints
from gradscope.errors import InputError

HOSTILE = dict(hostile.hostile())
SOUND = hostile.sound()


def refusal(path, **choice):
    with pytest.raises(InputError) as caught:
        read_layer(path, **choice)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    assert len(message) < 700 + len(str(path))
    return message


def stranger(folder, name):
    """The file, in a folder with what it may try to reach."""
    suffix, data, words = HOSTILE[name]
    (folder / "models").mkdir()
    (folder / "secret").write_bytes(bytes(192))
    (folder / "models" / "link").symlink_to(folder / "secret")
    (folder / "models" / "short").write_bytes(bytes(9))
    os.mkfifo(folder / "models" / "pipe")
    path = folder / "models" / f"model{suffix}"
    path.write_bytes(data)
    return path, words


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hostile_model_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, words = stranger(tmp_path, name)
    assert words in refusal(path)
    assert not (tmp_path / "pwned").exists()


IN_LITTLE_MEMORY = """
import resource, sys
from gradscope import checkpoints
from gradscope.errors import InputError
import onnx, safetensors
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in sys.argv[1:]:
    try:
        checkpoints.read_all(path)
    except InputError as error:
        assert "memory" not in str(error), error
print("all read")
"""


def test_hostile_models_take_little_memory_and_time(tmp_path):
    paths = []
    for k, name in enumerate(HOSTILE):
        (tmp_path / str(k)).mkdir()
        paths.append(stranger(tmp_path / str(k), name)[0])
    done = subprocess.run([sys.executable, "-c", IN_LITTLE_MEMORY, *paths], capture_output=True, text=True)
    assert done.stdout == "all read\n", done.stderr


@pytest.mark.parametrize("suffix", SOUND)
def test_models_truncated_anywhere(suffix, tmp_path):
    data, path = SOUND[suffix], tmp_path / f"model{suffix}"
    path.write_bytes(data)
    assert checkpoints.read_all(path).layers
    for tenth in range(10):
        path.write_bytes(data[: len(data) * tenth // 10])
        refusal(path, cell="lstm", layer=None)
    path.write_bytes(data[:-1])
    refusal(path, cell="lstm")


def damage(suffix, count, seed, path):
    """Mutations of a sound file, most at its ends, which describe it: refused, or layers of numbers."""
    rng, data = random.Random(f"{suffix} {seed}"), SOUND[suffix]
    refused = 0
    for _ in range(count):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            size = len(mutated)
            places = (
                rng.randrange(min(size, 4000)),
                rng.randrange(size),
                size - 1 - rng.randrange(min(size, 2000)),
            )
            at = rng.choice(places)
            mutated[at] = rng.choice((rng.randrange(256), 0, 255, mutated[at] ^ 1 << rng.randrange(8)))
        if rng.random() < 0.1:
            start = rng.randrange(len(mutated))
            del mutated[start : start + rng.choice((1, 4, 64))]
        path.write_bytes(mutated)
        try:
            layers = checkpoints.read_all(path).layers
        except InputError as error:
            assert str(error).isprintable()  # noqa: PT017  # most are refused, in some the bytes do not matter
            refused += 1
            continue
        for layer in layers:
            assert all(np.isfinite(array).all() for array in layer.arrays.values())
    return refused


@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_damaged_models(suffix, tmp_path):
    assert damage(suffix, 300, 0, tmp_path / f"model{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_thousands_of_damaged_models(suffix, tmp_path):
    assert damage(suffix, 10_000, 1, tmp_path / f"model{suffix}")


def test_max_size_lets_more_through_and_less(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(SOUND[".pt"])
    assert "--max-size" in refusal(path, max_size=100)
    assert read_layer(path, layer="l0", max_size=10**6).hidden == 4
