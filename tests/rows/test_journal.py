"""Rows in a file that only grows: what a killed process leaves is read, and goes on."""

import json

import pytest

from gradscope.errors import InputError
from gradscope.rows.journal import SWEEP, TRACK, Journal, deduplicated, missing, natural


def row(name, key="k", **more):
    return {"schema": "gradscope/track/1", "checkpoint": name, "key": key, "index": 0, "of": 1, **more}


def test_rows_are_what_was_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [row(f"step_{number}.pt", log10_norm=number / 7) for number in range(3)]
    for one in rows:
        Journal(path).append(one)
    assert Journal.read(path).rows == rows
    assert Journal.read(tmp_path / "none.jsonl").rows == []


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_line_is_left_out_and_what_comes_after_stands(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    for name in ("a", "b"):
        Journal(path).append(row(name))
    path.write_bytes(path.read_bytes()[:-cut])
    torn = Journal.read(path)
    # Without its end of line alone it is whole.
    assert ([one["checkpoint"] for one in torn.rows], torn.torn) == (
        (["a", "b"], 0) if cut == 1 else (["a"], 1)
    )
    Journal(path).append(row("c"))
    assert [one["checkpoint"] for one in Journal.read(path).rows] == (
        ["a", "b", "c"] if cut == 1 else ["a", "c"]
    )


@pytest.mark.parametrize(
    "line",
    ["3", '{"schema": "gradscope/analysis/1"}', '{"schema": "gradscope/track/1", "checkpoint": 3}', "[]"],
)
def test_a_file_of_something_else_is_refused(tmp_path, line):
    (tmp_path / "other").write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"line 1 is .* expected a row \(gradscope/track/1"):
        Journal.read(tmp_path / "other")
    (tmp_path / "long").write_text("x" * (2**20 + 2))
    with pytest.raises(InputError, match="line 1 is over 1 MiB"):
        Journal.read(tmp_path / "long")
    with pytest.raises(InputError, match="Is a directory"):
        Journal.read(tmp_path)


def test_each_once_in_order():
    rows = [
        row("b", "2", index=1, log10_norm=5),
        row("a", "1", index=0),
        row("b", "2", index=1, log10_norm=5),
        row("c", None, index=2, error="no such file"),
        row("c", "3", index=2),
        row("d", None, index=3, error="first"),
        row("d", None, index=3, error="last"),
        row("a", "9", index=0),  # the same name with other content
    ]
    found = deduplicated(rows)
    assert [(one["checkpoint"], one["key"]) for one in found] == [
        ("a", "1"),
        ("a", "9"),
        ("b", "2"),
        ("c", "3"),
        ("d", None),
    ]
    assert found[-1]["error"] == "last"


def test_what_is_missing():
    rows = [row("a", index=0, of=4), row("c", index=2, of=4)]
    assert missing(rows) == ([1, 3], 4)
    assert missing([row("a", index=0, of=4), row("b", index=0, of=5)]) is None
    assert missing([row("a", of="many")]) is None


def test_numbers_in_names_are_ordered_by_size():
    names = ["step_100.pt", "step_20.pt", "best.pt", "step_3.pt", "9/step_1.pt", "10/step_0.pt", "٣", "²"]
    ordered = sorted(names, key=natural)
    assert [name for name in ordered if name.startswith("step")] == ["step_3.pt", "step_20.pt", "step_100.pt"]
    assert ordered.index("9/step_1.pt") < ordered.index("10/step_0.pt")


SOUND = {
    "schema": TRACK, "checkpoint": "a.pt", "index": 0, "of": 1, "key": "k", "log10_norm": -1.5, "rate": None,
    "horizon": 3, "verdict": "stable", "notes": ["x"], "shares": {"R": None, "W": 0.5}, "converged": True,
    "by_lag": {"lag": [1, 2], "log10_norm": [0, None]}, "masks": {"log10_norm": 1, "verdict": "stable"},
    "loss": {"at": "last", "log10_gradient": 1e-3, "clip": {"factor": 1}, "tbptt": {"bias": None}},
}  # fmt: skip
DAMAGED = {
    "index": [1.5, -1, "0", True, [1]],
    "key": [3, ["k"]],
    "log10_norm": ["x", [1], True, 10**400],
    "verdict": [["stable"], 3, "good"],
    "notes": ["x", [3]],
    "shares": [3, {"R": "x"}],
    "converged": [1],
    "by_lag": [3, {"lag": [1], "log10_norm": []}, {"lag": ["1"], "log10_norm": [0]}, {"lag": [1]}],
    "saturated": [1.5],
    "masks": ["x", {"verdict": 3}, {"rate": "q"}],
    "loss": [[], {"log10_gradient": {}}, {"clip": 3}, {"tbptt": {"bias": {}}}],
}


def test_a_row_of_a_stranger_is_refused_by_the_name_of_its_field(tmp_path):
    """What views would stumble over is told where the file is read."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(SOUND) + "\n")
    assert Journal.read(file).rows == [SOUND]
    for name, values in DAMAGED.items():
        for value in values:
            file.write_text(f"{json.dumps(SOUND)}\n{json.dumps(SOUND | {name: value})}\n")
            with pytest.raises(InputError, match=f"line 2: {name} is .*: gradscope wrote no such row"):
                Journal.read(file)
    for odd in ("NaN", "1e999", "-Infinity"):
        file.write_text(json.dumps(SOUND).replace("-1.5", odd) + "\n")
        with pytest.raises(InputError, match=f"line 1: '{odd}' is no number that JSON knows"):
            Journal.read(file)
    file.write_text(json.dumps({"schema": SWEEP, "point": "gain=1"}) + "\n")
    with pytest.raises(InputError, match="line 1: has no settings"):
        Journal.read(file)
