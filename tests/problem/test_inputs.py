"""Inputs as people have them: every format and layout gives the same sequences, or one line."""

from __future__ import annotations

import random

import jsonschema
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.asking import make_problem
from oracles.hostile_arrays import HOSTILE
from oracles.models import log10_values
from oracles.refusals import refused
from safetensors.numpy import save_file

import gradscope
from gradscope.checkpoints.found import Named
from gradscope.errors import InputError
from gradscope.formats.reading import read_array
from gradscope.report.provenance import described

X = np.random.default_rng(6).standard_normal((2, 9, 3))


# Formats


def saved(folder, form, array):
    path = folder / f"x.{form.partition(':')[0]}"
    if form == "npy":
        np.save(path, array)
    elif form == "npz":
        np.savez(path, array)
    elif form == "npz:x":
        np.savez(path, other=np.array(["text"]), x=array)
    elif form == "safetensors":
        save_file({"anything": array}, path)
    else:
        save_file({"other": np.ones(2), "x": array}, path)
    return f"{path}:x" if ":" in form else path


@pytest.mark.parametrize("form", ["npy", "npz", "npz:x", "safetensors", "safetensors:x"])
def test_arrays_of_every_format(form, tmp_path):
    path = saved(tmp_path, form, X)
    np.testing.assert_array_equal(read_array(path), X)
    problem = make_problem(inputs=path, hidden=4)
    np.testing.assert_array_equal(problem.system.inputs, X)
    assert described(problem, "cpu")["inputs"] == str(path)


TABLES = {
    "comma": "1,2.5\n-3,4e2\n",
    "heading": "speed,load\n1,2.5\n-3,4e2\n",
    "quotes": '"speed","load"\n"1","2.5"\n"-3","4e2"\n',
    "semicolon": "speed;load\r\n1;2.5\r\n-3;4e2\r\n",
    "tab": "1\t2.5\n-3\t4e2",
    "spaces": " 1  2.5\n-3 4e2\n",
    "comments": "# of numpy.savetxt\n\n1,2.5\n# between\n\n-3,4e2\n",
    "byte order mark": "\ufeffspeed,load\n1,2.5\n-3,4e2\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_numbers(name, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(TABLES[name].encode())
    np.testing.assert_array_equal(read_array(path), [[1, 2.5], [-3, 400]])


def test_a_table_written_by_numpy_is_read_to_the_last_digit(tmp_path):
    np.savetxt(tmp_path / "x.csv", X[0], fmt="%.17g", delimiter=",", header="a,b,c")
    np.testing.assert_array_equal(read_array(tmp_path / "x.csv"), X[0])
    assert make_problem(inputs=tmp_path / "x.csv", hidden=4).system.inputs.shape == (1, 9, 3)


HOSTILE_TABLES = {
    "empty": (b"", "is empty, expected a .csv file"),
    "blank": (b"\n \n# nothing\n", "holds no numbers, expected one row for each step"),
    "heading alone": (b"speed,load\n", "holds no numbers, expected one row for each step"),
    "text": (b"a,b\n1,2\n3,x\n", "could not convert string 'x' to float64 at row 2, column 2"),
    "half a heading": (b"1,b\n1,2\n", "could not convert string 'b' to float64 at row 1, column 2"),
    "decimal commas": (b"1,5;2,5\n3,5;4,5\n", "could not convert string '3,5' to float64 at row 1, column 1"),
    "ragged": (b"1,2\n3\n", "the number of columns changed from 2 to 1 at row 2"),
    "missing": (b"1,2\n3,\n", "could not convert string ''"),
    "nan": (b"1,2\n3,nan\n", "the table holds nan at index [1, 1], expected finite numbers"),
    "infinite": (b"1,2\n3,1e999\n", "the table holds inf at index [1, 1]"),
    "zero bytes": (b"1,2\n3,\0\n", "could not convert string"),
    "another encoding": ("1,2\n".encode("utf-16"), "not a sound .csv file"),
    "npy named csv": (b"\x93NUMPY\x01\x00", "not a sound .csv file"),
    "formula": (b"1,2\n=cmd|' /C calc'!A0,1\n", "could not convert string"),
    "escapes": (b"1\n\x1b[2J\n", "could not convert string"),
    "a million cells of heading": (b"x," * 10**6 + b"\n1,2\n", ""),
}


@pytest.mark.parametrize("name", HOSTILE_TABLES)
def test_tables_that_are_none(name, tmp_path):
    data, expected = HOSTILE_TABLES[name]
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    if expected:
        message = refused(read_array, path)
        assert message.startswith(f"{path}: ")
        assert expected in message
    else:
        np.testing.assert_array_equal(read_array(path), [[1, 2]])


def test_damaged_tables(tmp_path):
    rng = random.Random(0)
    sound = ("a,b,c\n" + "\n".join(",".join(map(str, row)) for row in X[0])).encode()
    path = tmp_path / "x.csv"
    for _ in range(500):
        data = bytearray(sound)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), *b'\n,;"#'))
        path.write_bytes(data)
        try:
            array = read_array(path)
        except InputError as error:
            assert str(error).isprintable()  # noqa: PT017  # most are refused, some bytes do not matter
        else:
            assert array.ndim == 2
            assert np.isfinite(array).all()


def test_hostile_array_files(tmp_path):
    for suffix, data, _ in HOSTILE.values():
        path = tmp_path / f"x{suffix}"
        path.write_bytes(data)
        message = refused(read_array, path)
        assert message.startswith(f"{path}: ")
        assert "--max-size" not in message  # that is of the checkpoint
        assert ("unpacks to" in message) == ("save it with numpy.savez, which does not compress" in message)


def test_files_that_hold_several_arrays_or_another_kind(tmp_path):
    path = saved(tmp_path, "safetensors:x", X)
    whole = path.removesuffix(":x")
    assert refused(read_array, whole) == (
        f"{whole}: holds 2 arrays (other, x): say which, as in {whole}:other"
    )
    assert "holds no array 'y', expected one of other, x" in refused(read_array, f"{whole}:y")
    assert "'x.mat': expected a .npy, .npz, .safetensors or .csv file" in refused(read_array, "x.mat")
    assert "saved so by numpy.save('x.npy', x.cpu().numpy())" in refused(read_array, "x.pt")
    save_file({}, tmp_path / "none.safetensors")
    assert "holds no array" in refused(read_array, tmp_path / "none.safetensors")


# Layout


def test_time_major():
    turned = X.swapaxes(0, 1)
    np.testing.assert_array_equal(make_problem(inputs=turned, time_major=True, hidden=4).system.inputs, X)
    alone = make_problem(inputs=X[0], time_major=True, hidden=4).system.inputs
    np.testing.assert_array_equal(alone, X[:1])
    message = refused(make_problem, inputs=X[0, 0], time_major=True)
    assert message == "inputs have shape (3,), expected (T, d) or (T, B, d), each at least 1"
    assert "time_major is about given inputs, but inputs are zeros: give --inputs FILE" in refused(
        make_problem, inputs="zeros", time_major=True
    )


# Token ids

IDS = np.array([[3, 0, 4, 1], [2, 2, 0, 4]])


def language_model(folder, suffix=".pt"):
    state = {"tokens.weight": np.random.default_rng(0).standard_normal((5, 3))}
    state |= layouts.recurrent("lstm", 3, 4, prefix="rnn.", scale=4, dtype="float64")
    return layouts.saved(state, folder / f"m{suffix}"), state


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_token_ids_go_through_the_models_own_embedding(suffix, tmp_path):
    path, state = language_model(tmp_path, suffix)
    ids = IDS[:, :3]  # few steps, or float64 has no digits left of the smallest values
    p = layouts.equations_of("lstm", {key.removeprefix("rnn."): a for key, a in state.items()})
    _, jacobian = equations.trajectory_jacobian("lstm", p, state["tokens.weight"][ids[1]], np.zeros(8))
    analysis = gradscope.analyze(checkpoint=path, inputs=ids, embedding="tokens")
    ours = analysis.full.spectra[1].log10_singular_values
    np.testing.assert_allclose(ours, log10_values(jacobian), rtol=0, atol=1e-6)
    assert analysis.problem["embedding"] == "tokens.weight"
    jsonschema.validate(analysis.to_dict(), gradscope.schema())


TABLE = Named("tokens.weight", np.random.default_rng(1).standard_normal((5, 3)))
EMBEDDED = TABLE.values[IDS]
LAYOUTS = {
    "sequences": (IDS, {}),
    "one sequence": (IDS[0], {}),
    "time first": (IDS.T, {"time_major": True}),
    "a column of a table": (IDS[0][:, None], {}),
    "padding": (np.where(IDS > 3, -100, IDS), {"lengths": [2, 3]}),
    "whole floats": (IDS.astype(np.float32), {}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_token_ids(name):
    ids, options = LAYOUTS[name]
    problem = make_problem(inputs=ids, hidden=4, embedding=TABLE, **options)
    expected = EMBEDDED if problem.system.batch == 2 else EMBEDDED[:1]
    for number, sequence in enumerate(problem.system.inputs):
        length = problem.system.length(number)
        np.testing.assert_array_equal(sequence[:length], expected[number, :length])


REFUSED_IDS = {
    "beyond": ([[0, 5]], "inputs hold 5 at index [0, 1], expected whole numbers from 0 to 4"),
    "negative": ([[-1, 2]], "inputs hold -1 at index [0, 0], expected whole numbers from 0 to 4"),
    "between": ([[0, 1.5]], "inputs hold 1.5 at index [0, 1]"),
    "huge": ([[0, 1e300]], "inputs hold 1e+300 at index [0, 1]"),
    "vectors": (EMBEDDED, "inputs have shape (2, 4, 3), expected (T,) or (B, T), each at least 1"),
    "none": ("zeros", "embedding is about given inputs, but inputs are zeros: give --inputs FILE"),
}


@pytest.mark.parametrize("name", REFUSED_IDS)
def test_token_ids_that_are_none(name):
    ids, expected = REFUSED_IDS[name]
    assert expected in refused(make_problem, inputs=ids, hidden=4, embedding=TABLE)


def test_what_looks_like_token_ids_is_told_of_the_embedding(tmp_path):
    hint = "if they are token ids, say which --embedding of the checkpoint"
    path, _ = language_model(tmp_path)
    analyze = gradscope.analyze
    assert hint in refused(analyze, checkpoint=path, inputs=IDS[0])
    message = refused(analyze, checkpoint=path, inputs=IDS)
    assert message == f"its input size is 3, but the inputs have 4: they must agree; {hint}"
    assert hint not in refused(analyze, checkpoint=path, inputs=IDS + 0.5)
    message = refused(analyze, checkpoint=path, inputs=IDS, embedding="words")
    assert message == f"{path}: holds no tensor 'words', expected one of tokens"
    layouts.saved(layouts.recurrent("lstm", 3, 4), tmp_path / "rnn.pt")
    message = refused(analyze, checkpoint=tmp_path / "rnn.pt", inputs=IDS, embedding="words")
    assert message.endswith("holds no tensor 'words', nor any but those of its recurrent layers")
    assert hint not in refused(analyze, checkpoint=path, inputs=IDS[:0])
    assert "embedding is 'tokens', but that is about a checkpoint" in refused(
        analyze, inputs=IDS, embedding="tokens"
    )
    flat = Named("bias", np.ones(3))
    assert "embedding bias has shape (3,), expected (V, d)" in refused(
        make_problem, inputs=IDS, embedding=flat
    )


def test_memory_is_checked_before_ids_are_looked_up():
    wide = Named("tokens", np.broadcast_to(0.0, (2, 10**9)))
    assert "GiB, this machine has" in refused(make_problem, inputs=IDS % 2, hidden=4, embedding=wide)
