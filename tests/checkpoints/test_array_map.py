"""Arrays under foreign names: a map makes of them the layer that they are under a library's names."""

from __future__ import annotations

import json
import random
import re
import shlex

import h5py
import msgpack
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.hostile import packed
from oracles.models import outputs, read_layer

import gradscope
from gradscope import checkpoints
from gradscope.checkpoints.array_map import rules_of
from gradscope.errors import InputError

HIDDEN, INPUT, STEPS = 5, 3, 7
X = np.random.default_rng(3).standard_normal((STEPS, INPUT))
STATES = {kind: layouts.recurrent(kind, INPUT, HIDDEN, dtype="float64") for kind in ("lstm", "gru", "rnn")}
GRU = STATES["gru"]
FOREIGN = {f"enc_{role[0]}_{role[-2:]}": GRU[f"{role}_l0"] for role in ("weight_ih", "weight_hh", "bias_ih")}
FOREIGN["enc_b_hh"] = GRU["bias_hh_l0"]
TORCH = "W_r,W_z,W_h=enc_w_ih; R_r,R_z,R_h=enc_w_hh; b_r,b_z,b_h=enc_b_ih; c_r,c_z,c_h=enc_b_hh"


def saved(path, arrays):
    np.savez(path, **arrays)
    return path


def check(layer, kind, state):
    """What the layer puts out is what the equations with PyTorch's arrays do."""
    start = np.zeros(HIDDEN * len(layer.cell.components))
    states, _ = equations.trajectory_jacobian(kind, layouts.equations_of(kind, state), X, start)
    np.testing.assert_allclose(outputs(layer, X), states[:, -HIDDEN:], rtol=0, atol=1e-12)


def arrays_as(lstm, gates):
    """The rows of a PyTorch LSTM's arrays with its gates (i f z o) in another order."""
    blocks = {role: dict(zip("ifzo", np.split(array, 4), strict=True)) for role, array in lstm.items()}
    return {role: np.concatenate([blocks[role][gate] for gate in gates]) for role in lstm}


def forms():
    """{name: (kind, arrays, map)}: the layers of STATES as others keep them."""
    lstm, rnn = STATES["lstm"], STATES["rnn"]
    onnx, tf1 = arrays_as(lstm, "iofz"), arrays_as(lstm, "izfo")
    blocks = dict(zip("ifzo", np.split(lstm["weight_ih_l0"], 4), strict=True))
    kernel = np.concatenate([tf1["weight_ih_l0"].T, tf1["weight_hh_l0"].T])
    own = {
        f"gates/{g}/w:0": np.hstack([blocks[g], np.split(lstm["weight_hh_l0"], 4)[k]]).T
        for k, g in enumerate("ifzo")
    }
    both = lstm["bias_ih_l0"] + lstm["bias_hh_l0"]
    forget = tf1["bias_ih_l0"] + tf1["bias_hh_l0"]
    forget[2 * HIDDEN : 3 * HIDDEN] -= 1
    n, d = HIDDEN, INPUT
    return {
        "one map": ("gru", FOREIGN, TORCH),
        "Keras' bias of two rows": (
            "gru",
            {
                "k": GRU["weight_ih_l0"].T,
                "u": GRU["weight_hh_l0"].T,
                "b": np.stack([GRU["bias_ih_l0"], GRU["bias_hh_l0"]]),
            },
            "W_r,W_z,W_h=k.T; R_r,R_z,R_h=u.T; b_r,b_z,b_h=b[0]; c_r,c_z,c_h=b[1]",
        ),
        "ONNX' order, with an axis of directions": (
            "lstm",
            {role: array[None] for role, array in onnx.items()},
            "W_i,W_o,W_f,W_z=weight_ih_l0[0]; R_i,R_o,R_f,R_z=weight_hh_l0[0]; "
            "b_i,b_o,b_f,b_z=bias_ih_l0[0] + bias_hh_l0[0]",
        ),
        "one kernel, a forget bias at run time": (
            "lstm",
            {"kernel": kernel, "bias": forget},
            f"W_i,W_z,W_f,W_o=kernel[:{d}].T; R_i,R_z,R_f,R_o=kernel[{d}:].T; b_i,b_z,b_f,b_o=bias; c_f=1",
        ),
        "a kernel for each gate": (
            "lstm",
            own | {"b": both},
            "; ".join(f"W_{g}=gates/{g}/w:0[:{d}].T; R_{g}=gates/{g}/w:0[{d}:].T" for g in "ifzo")
            + f"; b_i=b[0:{n}]; b_f=b[{n}:{2 * n}]; b_z=b[-{2 * n}:-{n}]; b_o=b[{3 * n}:]",
        ),
        "gates on an axis of their own, units in turn": (
            "lstm",
            {
                "w": lstm["weight_ih_l0"].reshape(4, n, d),
                "r": lstm["weight_hh_l0"].reshape(4, n, n),
                "b": both.reshape(4, n).T.ravel(),
            },
            "W_i,W_f,W_z,W_o=w; R_i,R_f,R_z,R_o=r; b_i=b[::4]; b_f=b[1::4]; b_z=b[2::4]; b_o=b[3::4]",
        ),
        "names with signs in them": (
            "rnn",
            {
                "a+b=[1]; c": rnn["weight_ih_l0"],
                "it's": rnn["weight_hh_l0"],
                "b": rnn["bias_ih_l0"] + rnn["bias_hh_l0"],
            },
            "W='a+b=[1]; c'; R=\"it's\"; b=b",
        ),
    }


@pytest.mark.parametrize("name", forms())
def test_a_map_makes_the_layer(name, tmp_path):
    kind, arrays, rules = forms()[name]
    path = saved(tmp_path / "x.npz", arrays)
    cell = "rnn" if kind == "rnn" else None
    layer = read_layer(path, cell, rules=rules_of(rules))
    check(layer, kind, STATES[kind])
    assert layer.assumed[0].startswith("what the arrays are, by the map: W")
    inside = saved(tmp_path / "y.npz", {f"deep/{key}": value for key, value in arrays.items()})
    check(read_layer(inside, cell, rules=rules_of(rules)), kind, STATES[kind])  # the ends of names will do


def test_every_way_to_give_a_map(tmp_path, run):
    path = saved(tmp_path / "x.npz", FOREIGN)
    file = tmp_path / "own.map"
    file.write_text("# a GRU\n\n" + TORCH.replace("; ", "  # as PyTorch has it\n") + "\n")
    np.save(tmp_path / "x.npy", X)
    mapping = dict(rule.split("=") for rule in TORCH.split("; "))
    gains = [
        gradscope.analyze(checkpoint=path, inputs=X, map=given).full.log10_norm.median
        for given in (TORCH, TORCH.split("; "), mapping, file)
    ]
    options = [part for rule in TORCH.split("; ") for part in ("--map", rule)]
    for given in (options, ["--map", file]):
        code, out, _ = run("analyze", path, "--inputs", tmp_path / "x.npy", "--json", *given)
        assert code == 0
        gains.append(json.loads(out)["chains"][0]["log10_norm"]["median"])
    assert len(set(gains)) == 1
    code, _, err = run("inspect", path, "--map", file, "-o", file)
    assert (code, "is a file to be read" in err) == (2, True)


def files():
    """{suffix: write(path, arrays)} of every format of named arrays that needs no framework."""

    def h5(path, arrays):
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[f"model/{name}"] = array

    def flax(path, arrays):
        path.write_bytes(
            msgpack.packb({n: packed(a.shape, a.dtype.name, a.tobytes()) for n, a in arrays.items()})
        )

    return {
        ".npz": saved,
        ".pt": lambda path, arrays: layouts.saved(arrays, path),
        ".safetensors": lambda path, arrays: layouts.saved(arrays, path),
        ".h5": h5,
        ".msgpack": flax,
    }


@pytest.mark.parametrize("suffix", files())
def test_every_format(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    files()[suffix](path, FOREIGN)
    check(read_layer(path, rules=rules_of(TORCH)), "gru", GRU)


def test_layers_under_names_of_their_own(tmp_path):
    """Two directions and what reads them, under names that the map gives: as PyTorch's own file of it."""
    state = layouts.recurrent("gru", INPUT, HIDDEN, layers=2, bidirectional=True, dtype="float64")
    ends = {"a.left": "0", "a.right": "0_reverse", "b": "1"}
    rules = [
        f"{name}.{','.join(f'{letter}_{gate}' for gate in 'rzh')}={role}_l{end}"
        for name, end in ends.items()
        for letter, role in (("W", "weight_ih"), ("R", "weight_hh"), ("b", "bias_ih"), ("c", "bias_hh"))
    ]
    own = {f"x{key}": value for key, value in state.items()}
    path = saved(tmp_path / "x.npz", own)
    choice = {"reads": ["b=a.left,a.right"], "layer": ["a.left", "a.right", "b"], "inputs": X}
    ours = gradscope.analyze(checkpoint=path, map=[*rules, "a.right.direction=backward"], **choice)
    theirs = gradscope.analyze(
        checkpoint=layouts.saved(state, tmp_path / "x.pt"), layer=["l0", "l0_reverse", "l1"], inputs=X
    )
    assert [layer.problem["direction"] for layer in ours.layers] == ["forward", "backward", "forward"]
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        for ours_, theirs_ in zip(one.full.spectra, other.full.spectra, strict=True):
            np.testing.assert_allclose(
                ours_.log10_singular_values, theirs_.log10_singular_values, rtol=0, atol=1e-9
            )


REFUSED = {
    "no rule": (
        "nonsense",
        "map is 'nonsense', expected a rule such as W_f=enc/wf[:,0:64].T, or a file of them",
    ),
    "no array": ("W_r=", "map has 'W_r=', expected KEY=ARRAY or KEY,KEY=ARRAY"),
    "no key": ("=enc_w_ih", "expected KEY=ARRAY or KEY,KEY=ARRAY"),
    "keys of two layers": ("a.W_r,b.W_z=enc_w_ih", "expected the keys of one layer: a, b are several"),
    "no such array": ("W_r=enc_w", "map: 'enc_w' is the name of none, expected one of enc_w_ih, enc_w_hh"),
    "end of several": ("W_r=_hh", "map: '_hh' is the end of several, expected one of enc_w_hh, enc_b_hh"),
    "odd parts": ("W_r,W_z=enc_w_ih", "has shape (15, 3), expected a first axis of 2 even parts"),
    "beyond": (
        "W_r=enc_w_ih[0:20]",
        "'enc_w_ih[0:20]' reaches beyond the shape (15, 3), expected a part of it",
    ),
    "beyond by an index": ("b_r=enc_w_ih[15]", "reaches beyond the shape (15, 3)"),
    "nothing": ("W_r=enc_w_ih[5:5]", "reaches beyond the shape (15, 3)"),
    "no range": ("W_r=enc_w_ih[a]", "of shape (15, 3), expected a range for each axis, such as [0:64]"),
    "too many ranges": ("W_r=enc_w_ih[:,:,:]", "of shape (15, 3), expected a range for each axis"),
    "sum of unlike": ("W_r=enc_w_ih+enc_w_hh", "have shapes (15, 3), (15, 5), expected them alike"),
    "said twice": (
        "W_r,W_z,W_h=enc_w_ih; W_r=enc_w_ih[:5]",
        "map says twice what W_r is: keep one of the rules",
    ),
    "no gate": (
        TORCH.replace("R_r,R_z,R_h", "R_r,R_z,R_q"),
        "keys are of no built-in cell; the nearest: missing R_h; unknown R_q",
    ),
    "one of the biases": (TORCH.partition("; b_")[0] + "; b_r=enc_b_ih[:5]", "missing b_h, b_z"),
    "biases of two sizes": (
        TORCH.replace("c_r,c_z,c_h=enc_b_hh", "c_r=enc_b_hh"),
        "c_r has shape (15,), expected (5,) as b_r, which it is added to",
    ),
    "a matrix on its side": (
        TORCH.replace("R_r,R_z,R_h=enc_w_hh", "R_r,R_z,R_h=enc_w_ih"),
        "R_r has shape (5, 3), expected (5, 5)",
    ),
    "no direction": (
        f"{TORCH}; direction=sideways",
        "map has 'direction=sideways', expected forward or backward",
    ),
    "code": ("W_r=__import__('os').system('touch pwned')", "map: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_map_that_does_not_fit_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rules, words = REFUSED[name]
    path = saved(tmp_path / "x.npz", FOREIGN)
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        checkpoints.read(path, rules=rules_of(rules))
    assert str(caught.value).isprintable()
    assert not (tmp_path / "pwned").exists()


def test_a_map_without_a_checkpoint():
    with pytest.raises(InputError, match=r"map is .* but that is about a checkpoint"):
        gradscope.analyze(map="W=w")


def offered(text):
    """The maps that a message offers, as a shell would read them."""
    return [shlex.split(part)[0] for part in re.split("--map ", text)[1:]]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_inspect_offers_the_maps_and_analyze_refuses_with_the_same(kind, turned, tmp_path, run):
    """Each leads somewhere, and one of them to the right layer."""
    state = STATES[kind]
    arrays = {
        name.replace("weight", "w").replace("bias", "b").replace("_l0", ""): a.T if turned else a
        for name, a in state.items()
    }
    path = saved(tmp_path / "x.npz", {f"net.{name}": a for name, a in arrays.items()})
    code, out, _ = run("inspect", path, "--json")
    (layer,) = json.loads(out)["layers"]
    assert code == 0
    code, _, err = run("analyze", path)
    assert (code, err) == (2, f"gradscope: error: {path}: {layer['problem']}\n")
    maps = offered(layer["problem"])
    assert len(maps) == {"lstm": 4, "gru": 2, "rnn": 1}[kind]
    cell = "rnn" if kind == "rnn" else None
    layers = [read_layer(path, cell, rules=rules_of(one)) for one in maps]
    check(layers[0], kind, state)
    assert len({layer.parameters["R_z" if kind != "rnn" else "R"].tobytes() for layer in layers}) == len(
        maps
    ) - (kind == "lstm")


def test_maps_are_offered_in_files_of_other_formats(tmp_path):
    """Of HDF5 that is not Keras', as of any other."""
    path = tmp_path / "x.h5"
    files()[".h5"](path, FOREIGN)
    (found,) = checkpoints.read_all(path).layers
    check(read_layer(path, rules=rules_of(offered(found.problem)[0])), "gru", GRU)


def test_both_readings_where_nothing_tells(tmp_path):
    """Two matrices of one shape under names without a meaning, and two biases of a GRU."""
    n = HIDDEN
    rng = np.random.default_rng(0)
    path = saved(
        tmp_path / "x.npz",
        {k: rng.standard_normal(s) for k, s in {"a": (3 * n, n), "b": (3 * n, n), "x": 3 * n}.items()},
    )
    (found,) = checkpoints.read_all(path).layers
    maps = offered(found.problem)
    assert len(maps) == 4
    assert len({read_layer(path, rules=rules_of(one)).parameters["R_z"].tobytes() for one in maps}) == 4


def test_a_cell_of_tensorflow_1_is_offered_with_its_forget_bias(tmp_path):
    kind, arrays, _ = forms()["one kernel, a forget bias at run time"]
    path = saved(
        tmp_path / "x.npz",
        {f"rnn/basic_lstm_cell/{k}": v for k, v in arrays.items()} | {"w": np.ones((3, 3))},
    )
    (found,) = checkpoints.read_all(path).layers
    (offer,) = offered(found.problem)
    check(read_layer(path, rules=rules_of(offer)), kind, STATES[kind])


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def of_haiku(kind, arrays, x):
    """What Haiku's LSTM and GRU put out, by the equations in its documentation."""
    h = c = np.zeros(HIDDEN)
    states = []
    for step in x:
        if kind == "lstm":
            gated = np.concatenate([step, h]) @ arrays["linear/w"] + arrays["linear/b"]
            i, g, f, o = np.split(gated, 4)
            c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            (w_z, w_r, w_a), (u_z, u_r, u_a) = (np.split(arrays[k], 3, axis=1) for k in ("w_i", "w_h"))
            b_z, b_r, b_a = np.split(arrays["b"], 3)
            z, r = sigmoid(step @ w_z + h @ u_z + b_z), sigmoid(step @ w_r + h @ u_r + b_r)
            h = (1 - z) * h + z * np.tanh(step @ w_a + (r * h) @ u_a + b_a)
        states.append(h)
    return np.array(states)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_map_of_haikus_layers_computes_what_haiku_does(kind, tmp_path):
    d, n, draw = INPUT, HIDDEN, np.random.default_rng(4).standard_normal
    arrays = {
        "lstm": {"linear/w": draw((d + n, 4 * n)), "linear/b": draw(4 * n)},
        "gru": {"w_i": draw((d, 3 * n)), "w_h": draw((n, 3 * n)), "b": draw(3 * n)},
    }[kind]
    path = saved(tmp_path / "x.npz", {f"net/~/{kind}_1/{own}": array for own, array in arrays.items()})
    (found,) = checkpoints.read_all(path).layers
    assert (found.name, found.kind) == (f"net/~/{kind}_1", f"{kind}?")
    (offer,) = offered(found.problem)
    x = draw((6, d))
    ours = outputs(read_layer(path, rules=rules_of(offer)), x)
    np.testing.assert_allclose(ours, of_haiku(kind, arrays, x), rtol=0, atol=1e-12)


def of_equinox(kind, arrays, x):
    """What Equinox's LSTMCell and GRUCell put out, by the equations in its documentation."""
    h = c = np.zeros(HIDDEN)
    states = []
    for step in x:
        a, b = arrays["weight_ih"] @ step + arrays["bias"], arrays["weight_hh"] @ h
        if kind == "lstm":
            i, f, g, o = np.split(a + b, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            (a_r, a_z, a_n), (b_r, b_z, b_n) = np.split(a, 3), np.split(b, 3)
            new = np.tanh(a_n + sigmoid(a_r + b_r) * (b_n + arrays["bias_n"]))
            h = new + sigmoid(a_z + b_z) * (h - new)
        states.append(h)
    return np.array(states)


@pytest.mark.parametrize("prefix", ["", "rnn.cell."])
@pytest.mark.parametrize(("kind", "gates"), [("lstm", 4), ("gru", 3)])
def test_the_map_of_equinoxs_cells_computes_what_equinox_does(kind, gates, prefix, tmp_path):
    n, draw = HIDDEN, np.random.default_rng(5).standard_normal
    arrays = {
        "weight_ih": draw((gates * n, INPUT)),
        "weight_hh": draw((gates * n, n)),
        "bias": draw(gates * n),
    }
    arrays |= {"bias_n": draw(n)} if kind == "gru" else {}
    path = saved(tmp_path / "x.npz", {prefix + own: array for own, array in arrays.items()})
    (found,) = checkpoints.read_all(path).layers
    (offer,) = offered(found.problem)
    x = draw((6, INPUT))
    ours = outputs(read_layer(path, rules=rules_of(offer)), x)
    np.testing.assert_allclose(ours, of_equinox(kind, arrays, x), rtol=0, atol=1e-12)


def test_a_layer_that_is_found_hides_no_other_whose_name_begins_so(tmp_path):
    """gru_head/w begins as gru, and is not in it."""
    shapes = {"w_i": (INPUT, 3 * HIDDEN), "w_h": (HIDDEN, 3 * HIDDEN), "b": (3 * HIDDEN,)}
    other = {"w": (INPUT, 4 * HIDDEN), "u": (HIDDEN, 4 * HIDDEN), "b": (4 * HIDDEN,)}
    names = {f"gru/{key}": shape for key, shape in shapes.items()}
    names |= {f"gru_head/{key}": shape for key, shape in other.items()}
    path = saved(tmp_path / "x.npz", {name: np.ones(shape) for name, shape in names.items()})
    assert {layer.name for layer in checkpoints.read_all(path).layers} == {"gru", "gru_head"}


def test_what_has_no_such_shapes_is_no_layer(tmp_path):
    arrays = {
        "mlp.up.w": np.ones((12, 3)),
        "mlp.down.w": np.ones((3, 12)),
        "mlp.up.b": np.ones(12),
        "table": np.ones((50, 3)),
    }
    with pytest.raises(InputError, match=r"say what its arrays are, as in --map 'W_z,W_r,W_h=NAME'"):
        checkpoints.read_all(saved(tmp_path / "x.npz", arrays))


def test_any_text_is_a_map_or_a_line(tmp_path):
    """Rules with pieces out of place, of which none is run, nor takes long."""
    path = saved(tmp_path / "x.npz", FOREIGN)
    rng = random.Random(0)
    pieces = [
        *re.split(r"(\W)", TORCH),
        *"[](){}+-;,.:='\"#",
        "-9",
        "1e999",
        ".T",
        "[0:5]",
        "[::0]",
        "direction",
        "\0",
        "é",
    ]
    for _ in range(1000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 30))) + rng.choice(["", TORCH])
        try:
            layers = checkpoints.read_all(path, rules=rules_of(text)).layers
        except InputError as error:
            assert str(error).isprintable()  # noqa: PT017
            continue
        assert all(np.isfinite(array).all() for layer in layers for array in layer.arrays.values())
    for long in ("W=" + "[" * 10**6, "W=" + "-" * 10**4 + "x", "W=x" + "'" * 10**5, "=" * 10**6):
        with pytest.raises(InputError):
            checkpoints.read(path, rules=rules_of(long))
