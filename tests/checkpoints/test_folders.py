"""Folders in the place of checkpoints: what is said leads on to what is read."""

from __future__ import annotations

import pytest

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
