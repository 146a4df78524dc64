"""Folders and indexes in the place of checkpoints: what is said leads on to what is read."""

from __future__ import annotations

import json
import re

import pytest
import safetensors.numpy
from oracles import layouts

from gradscope import checkpoints
from gradscope.errors import InputError


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["_METADATA", "manifest.ocdbt", "d.npz"], "that Orbax wrote, which is not read: restore it"),
        (["saved_model.pb", "variables"], "model.save('model.keras') of the same model is"),
        (["checkpoint", "cp.ckpt.index"], "model.save_weights('model.weights.h5') is"),
        (["config.json", "model.safetensors"], "expected a file, as {}/model.safetensors in it"),
        (["b.pt", "a.pt", "c.PT"], "as {}/a.pt in it, or one of the 2 others; all of a run: gradscope track"),
        (["notes.txt"], "is a folder, expected a file .npz"),
        ([], "is a folder, expected a file .npz"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".pt"])
def test_what_is_said_of_a_folder(names, said, suffix, tmp_path):
    folder = tmp_path / f"run{suffix}"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(InputError) as error:
        checkpoints.read_all(folder)
    assert said.format(folder) in str(error.value)


def test_what_is_said_of_an_archive_that_has_checkpoints_in_it(tmp_path):
    """As Stable-Baselines3 saves an agent."""
    path = tmp_path / "agent.zip"
    path.write_bytes(
        layouts.zipped(dict.fromkeys(("data", "variables.pth", "policy.pth", "policy.optimizer.pth"), b"x"))
    )
    with pytest.raises(InputError, match=r"; unzip it and give policy.pth, variables.pth of what is in it$"):
        checkpoints.read_all(path)
    path.write_bytes(layouts.zipped({"data": b"x"}))
    with pytest.raises(InputError, match=r"of another kind, numpy\.savez its arrays"):
        checkpoints.read_all(path)


def test_a_model_in_several_files(tmp_path):
    """The index says which has the layer; of the layer, that what the others hold is not known."""
    names = layouts.module(lstm=layouts.recurrent("lstm", 3, 4))
    part, index = tmp_path / "model-00002-of-00003.safetensors", tmp_path / "model.safetensors.index.json"
    safetensors.numpy.save_file(names, part)
    files = dict.fromkeys(names, part.name) | {"head.weight": "model-00001-of-00003.safetensors"}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    with pytest.raises(InputError, match=f"give the file that has the recurrent layers, {part.name}$"):
        checkpoints.read_all(index)
    (layer,) = checkpoints.read_all(part).layers
    assert layer.assumed[0].startswith(
        "that nothing in the other files of the model, of which this is 2 of 3"
    )
    other = tmp_path / "model-00001-of-00003.safetensors"
    safetensors.numpy.save_file(layouts.drawn({"head.weight": (2, 4)}, 0.5, 0), other)
    with pytest.raises(
        InputError, match=r"holds no LSTM.*it is 1 of 3 files of a model, of which no other was"
    ):
        checkpoints.read_all(other)
    part.rename(tmp_path / "model-00001-of-00001.safetensors")
    (layer,) = checkpoints.read_all(tmp_path / "model-00001-of-00001.safetensors").layers
    assert not layer.assumed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "it is no index of a model in several files either"),
        ("[1]", "it is no index of a model in several files either"),
        ('{"weight_map": {"wte.weight": "a.bin"}}', "no tensor has a name of PyTorch's"),
        ("{", "not a sound .json file"),
        ("[" * 100_000, "not a sound .json file"),
    ],
)
def test_what_is_no_index_of_one(text, said, tmp_path):
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        checkpoints.read_all(path)
