"""Repaired files: what is set is set, all else stays to the last bit, and the gain is what was said."""

import json
import zipfile

import jsonschema
import numpy as np
import pytest
from oracles import layouts
from safetensors.numpy import load_file, save_file

import gradscope
from gradscope.advise.knobs import KnobSetting
from gradscope.errors import InputError
from gradscope.schemas import schema

N, D, T = 4, 3, 12


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((T, D))


def lstm(prefix="rnn.", **options):
    return layouts.recurrent("lstm", D, N, prefix=prefix, **options) | layouts.dense("head", N, 2)


def test_a_bias_is_raised_in_the_rows_of_its_gate_alone(tmp_path, x):
    """torch's gates are i, f, g, o: rows N to 2N of one of the two biases."""
    state = lstm()
    save_file(state, tmp_path / "m.safetensors", metadata={"format": "pt", "who": "me"})
    found = gradscope.repair(
        checkpoint=tmp_path / "m.safetensors", output=tmp_path / "new.safetensors", knob="b_f+=2.5", inputs=x
    )
    new = load_file(tmp_path / "new.safetensors")
    assert new.keys() == state.keys()
    moved = new["rnn.bias_ih_l0"] + new["rnn.bias_hh_l0"] - state["rnn.bias_ih_l0"] - state["rnn.bias_hh_l0"]
    np.testing.assert_allclose(moved, np.repeat([0, 2.5, 0, 0], N), atol=1e-6)
    for name in state:
        assert new[name].dtype == state[name].dtype
        if name not in found.tensors:
            assert new[name].tobytes() == state[name].tobytes()
    assert found.tensors in (("rnn.bias_ih_l0",), ("rnn.bias_hh_l0",))
    before, after = ((tmp_path / name).read_bytes() for name in ("m.safetensors", "new.safetensors"))
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 4 * N
    p = layouts.equations_of("lstm", {k.removeprefix("rnn."): a for k, a in new.items()})
    np.savez(tmp_path / "ours.npz", **p)
    again = gradscope.analyze(checkpoint=tmp_path / "ours.npz", cell="lstm", inputs=x, only="gain")
    assert found.after.full.log10_norm.median == pytest.approx(again.full.log10_norm.median, abs=1e-9)
    assert found.before.full.log10_norm.median < found.after.full.log10_norm.median


@pytest.mark.parametrize("kind", ["gru", "rnn"])
def test_a_state_dict_of_torch_is_written_as_safetensors(kind, tmp_path, x):
    state = layouts.recurrent(kind, D, N, layers=2, bidirectional=False, dtype="float32")
    path = layouts.saved(state, tmp_path / "m.pt")
    cell = "rnn-relu" if kind == "rnn" else None
    found = gradscope.repair(
        checkpoint=path, output=tmp_path / "n.safetensors", knob="R_*=x0.5", inputs=x, cell=cell
    )
    new = load_file(tmp_path / "n.safetensors")
    assert new.keys() == state.keys()
    for name, array in state.items():
        factor = 0.5 if name.startswith("weight_hh") else 1.0
        assert new[name].tobytes() == (array * np.float32(factor)).tobytes()
    assert set(found.tensors) == {"weight_hh_l0", "weight_hh_l1"}


def test_one_layer_of_several_is_set_by_number_or_by_name(tmp_path, x):
    state = layouts.recurrent("lstm", D, N, layers=2, prefix="rnn.", dtype="float64")
    path = layouts.saved(state, tmp_path / "m.safetensors")
    for knob in ("layer1.R_z=x0.25", "rnn.l1.R_z=x0.25"):
        found = gradscope.repair(checkpoint=path, output=tmp_path / "n.safetensors", knob=knob, inputs=x)
        assert found.tensors == ("rnn.weight_hh_l1",)
        new = load_file(tmp_path / "n.safetensors")["rnn.weight_hh_l1"]
        ratio = new / state["rnn.weight_hh_l1"]
        np.testing.assert_array_equal(ratio, np.repeat([1, 1, 0.25, 1], N)[:, None] * np.ones((1, N)))


def test_singular_values_are_clipped(tmp_path, x):
    rng = np.random.default_rng(3)
    arrays = {"W": rng.standard_normal((N, D)), "R": 2 * rng.standard_normal((N, N)), "b": np.zeros(N)}
    np.savez(tmp_path / "m.npz", **arrays, other=np.arange(5))
    np.savez(tmp_path / "m.npz", **arrays)
    gradscope.repair(
        checkpoint=tmp_path / "m.npz", output=tmp_path / "n.npz", cell="rnn", knob="R<=1.02", inputs=x
    )
    with np.load(tmp_path / "n.npz") as new:
        values = np.linalg.svd(new["R"], compute_uv=False)
        old = np.linalg.svd(arrays["R"], compute_uv=False)
        np.testing.assert_allclose(values, np.minimum(old, 1.02), rtol=1e-12)
        assert new["W"].tobytes() == arrays["W"].tobytes()
    with zipfile.ZipFile(tmp_path / "m.npz") as a, zipfile.ZipFile(tmp_path / "n.npz") as b:
        assert [m.filename for m in a.infolist()] == [m.filename for m in b.infolist()]
        assert a.read("W.npy") == b.read("W.npy")


def test_a_name_alone_is_searched_for(tmp_path):
    state = lstm(dtype="float64")
    path = layouts.saved(state, tmp_path / "m.safetensors")
    found = gradscope.repair(
        checkpoint=path, output=tmp_path / "n.safetensors", knob="b_f", horizon=30, steps=30, inputs="normal"
    )
    assert found.before.full.horizon.median < 30 <= found.after.full.horizon.median
    assert found.knobs[0].startswith("b_f+=")
    jsonschema.validate(found.to_dict(), schema("repair"))


def test_flax_has_a_kernel_for_each_gate_transposed(tmp_path, x):
    rng = np.random.default_rng(2)
    arrays = {f"params/LSTMCell_0/i{g}/kernel": rng.standard_normal((D, N)) for g in "ifgo"}
    arrays |= {f"params/LSTMCell_0/h{g}/kernel": rng.standard_normal((N, N)) / 3 for g in "ifgo"}
    arrays |= {f"params/LSTMCell_0/h{g}/bias": np.zeros(N) for g in "ifgo"}
    save_file(arrays, tmp_path / "f.safetensors")
    found = gradscope.repair(
        checkpoint=tmp_path / "f.safetensors",
        output=tmp_path / "n.safetensors",
        knob=["R_f=x0.5", "b_f=3"],
        inputs=x,
        cell="lstm",
    )
    new = load_file(tmp_path / "n.safetensors")
    np.testing.assert_array_equal(
        new["params/LSTMCell_0/hf/kernel"], 0.5 * arrays["params/LSTMCell_0/hf/kernel"]
    )
    np.testing.assert_array_equal(new["params/LSTMCell_0/hf/bias"], np.full(N, 3.0))
    assert set(found.tensors) == {"params/LSTMCell_0/hf/kernel", "params/LSTMCell_0/hf/bias"}


def test_a_map_is_inverted_too(tmp_path, x):
    """One kernel of [x, h] by i, j, f, o as TensorFlow 1 has it, with a forget bias added at run time."""
    state = layouts.recurrent("lstm", D, N, dtype="float64")
    p = layouts.equations_of("lstm", state)
    order = ("i", "z", "f", "o")
    kernel = np.concatenate([np.concatenate([p[f"{k}_{g}"].T for g in order], axis=1) for k in "WR"])
    bias = np.concatenate([p[f"b_{g}"] - (g == "f") for g in order])
    np.savez(tmp_path / "m.npz", kernel=kernel, bias=bias)
    rules = f"W_i,W_z,W_f,W_o=kernel[:{D}].T; R_i,R_z,R_f,R_o=kernel[{D}:].T; b_i,b_z,b_f,b_o=bias; c_f=1"
    gradscope.repair(
        checkpoint=tmp_path / "m.npz",
        output=tmp_path / "n.npz",
        map=rules,
        knob=["b_f=3", "R_o=x2"],
        inputs=x,
    )
    with np.load(tmp_path / "n.npz") as new:
        np.testing.assert_array_equal(new["bias"][2 * N : 3 * N], np.full(N, 2.0))
        expected = kernel.copy()
        expected[D:, 3 * N :] *= 2
        np.testing.assert_array_equal(new["kernel"], expected)
        assert (new["bias"][: 2 * N] == bias[: 2 * N]).all()


@pytest.mark.slow
def test_flossing_brings_a_linear_rnn_to_an_isometry(tmp_path):
    """Of a normal R all sigma_i(R^T) near 1 are all sigma_i(R) near 1."""
    pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    r = q @ np.diag([1.1, 0.97, 0.9]) @ q.T
    np.savez(tmp_path / "m.npz", W=np.ones((3, 1)), R=r, b=np.zeros(3))
    found = gradscope.repair(
        checkpoint=tmp_path / "m.npz",
        output=tmp_path / "n.npz",
        cell="linear",
        inputs="zeros",
        steps=20,
        floss=3,
    )
    with np.load(tmp_path / "n.npz") as new:
        np.testing.assert_allclose(np.linalg.svd(new["R"], compute_uv=False), 1, atol=0.02)
    assert found.after.verdict.level == "stable"
    told = found.to_dict()
    jsonschema.validate(told, schema("repair"))
    logs = np.log([1.1, 0.97, 0.9])
    np.testing.assert_allclose(told["before"]["exponents"], logs, atol=1e-9)
    assert told["before"]["log10_condition"] == pytest.approx(20 * np.log10(1.1 / 0.9))
    np.testing.assert_allclose(told["after"]["exponents"], 0, atol=0.02)
    assert "lambda_1" in str(found)
    assert "lambda_1" in found._repr_html_()


REFUSED = {
    "nothing to set": ({}, "nothing is to be set: give --knob"),
    "no such knob": ({"knob": "b_x+=1"}, "expected one of b_z, b_i, b_f, b_o"),
    "a matrix is not shifted": ({"knob": "R_f+=1"}, "expected one of b_z"),
    "no setting": ({"knob": "b_f=+=1"}, "expected b_f+=2.3 (add)"),
    "itself": ({"knob": "b_f=1", "output": "m.safetensors"}, "is the checkpoint itself"),
    "another kind": ({"knob": "b_f=1", "output": "n.pt"}, "a .safetensors is written: give -o n.safetensors"),
    "no file": ({"knob": "b_f=1", "output": None}, "give -o FILE, or --in-place"),
    "two files": ({"knob": "b_f=1", "in_place": True}, "leave one of them out"),
    "options that change weights": ({"knob": "b_f=1", "gain": 2.0}, "--gain"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, said = REFUSED[case]
    save_file(lstm(), "m.safetensors")
    original = (tmp_path / "m.safetensors").read_bytes()
    with pytest.raises(InputError) as error:
        gradscope.repair(**{"checkpoint": "m.safetensors", "output": "n.safetensors", "steps": 4} | options)
    assert said in error.value.in_shell
    assert "\n" not in error.value.in_shell
    assert (tmp_path / "m.safetensors").read_bytes() == original
    assert not (tmp_path / "n.safetensors").exists()


@pytest.mark.parametrize("parts", ["gv", ["mask", "orig"]], ids=["weight norm", "pruned"])
def test_a_weight_in_two_parts_cannot_be_turned_round(parts, tmp_path):
    state = layouts.recurrent("rnn", D, N)
    weight = state.pop("weight_hh_l0")
    first = {"g": np.linalg.norm(weight, axis=1, keepdims=True), "mask": np.ones_like(weight)}[parts[0]]
    made = dict(zip((f"weight_hh_l0_{part}" for part in parts), (first, weight), strict=True))
    save_file(state | made, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="cannot be turned round"):
        gradscope.repair(
            checkpoint=tmp_path / "m.safetensors",
            output=tmp_path / "n.safetensors",
            cell="rnn",
            knob="R=x0.5",
            steps=4,
        )


def test_a_layer_without_biases_has_none_to_raise(tmp_path):
    save_file(layouts.recurrent("lstm", D, N, bias=False), tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="b_f is not in the file"):
        gradscope.repair(
            checkpoint=tmp_path / "m.safetensors", output=tmp_path / "n.safetensors", knob="b_f=1", steps=4
        )


@pytest.mark.parametrize(
    ("text", "pattern", "sign", "number"),
    [
        ("b_f+=2.3", "b_f", "+=", 2.3),
        ("b_f+=-2.3", "b_f", "+=", -2.3),
        ("b_f=-1e-3", "b_f", "=", -1e-3),
        ("layer0.R_*=x0.83", "layer0.R_*", "=x", 0.83),
        ("R_*<=1.02", "R_*", "<=", 1.02),
    ],
)
def test_settings_as_they_are_written(text, pattern, sign, number):
    found = KnobSetting.parse(text)
    assert (found.pattern, found.sign, found.number) == (pattern, sign, number)
    assert KnobSetting.parse(str(found)) == found


def test_command_line(run, tmp_path):
    path = layouts.saved(lstm(), tmp_path / "m.safetensors")
    new = tmp_path / "n.safetensors"
    code, out, _ = run("repair", path, "-o", new, "--knob", "b_f=3", "--steps", 6, "--json")
    told = json.loads(out)
    jsonschema.validate(told, schema("repair"))
    assert code == 0
    assert told["knobs"] == ["b_f=3"]
    code, out, _ = run("repair", new, "--in-place", "--knob", "b_f=3", "--steps", 6)
    assert code == 0
    assert "Before and after" in out
    code, _, err = run("repair", path, "--knob", "b_f=3", "--steps", 6)
    assert code == 2
    assert "-o" in err
    code, _, err = run("repair", path, "-o", path, "--knob", "b_f=3", "--steps", 6)
    assert code == 2
