"""Files written by hand for the rooms' tests are what PyTorch itself reads and names."""

from __future__ import annotations

import pytest
import torch
from oracles import layouts

KINDS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
OPTIONS = [
    {},
    {"layers": 2, "bidirectional": True},
    {"layers": 2, "bias": False},
    {"layers": 2, "bidirectional": True, "projection": 2},
]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, o) for kind in KINDS for o in OPTIONS if kind == "lstm" or "projection" not in o],
    ids=str,
)
def test_state_dicts_are_named_as_torch_names_them(kind, options, tmp_path):
    theirs = {"layers": "num_layers", "projection": "proj_size"}
    module = KINDS[kind](3, 4, **{theirs.get(name, name): value for name, value in options.items()})
    state = layouts.recurrent(kind, 3, 4, **options)
    assert list(state) == list(module.state_dict())
    read = torch.load(layouts.saved(state, tmp_path / "x.pt"), weights_only=True)
    module.load_state_dict(read)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, torch.tensor(state[name]), rtol=0, atol=0)


def test_what_is_not_a_state_dict_is_read_too(tmp_path):
    value = {"state_dict": layouts.dense("fc", 3, 2), "epoch": 3, "kept": [1.5, "text", None, True]}
    (tmp_path / "x.pt").write_bytes(layouts.torch_bytes(value))
    read = torch.load(tmp_path / "x.pt", weights_only=True)
    assert (read["epoch"], read["kept"]) == (3, [1.5, "text", None, True])
    assert list(read["state_dict"]) == ["fc.weight", "fc.bias"]
