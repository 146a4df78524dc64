"""Work goes on where it was stopped: what has a row is kept, what has none is done."""

from dataclasses import dataclass, field

from gradscope.errors import InputError
from gradscope.rows.following import follow
from gradscope.rows.journal import Journal, deduplicated
from gradscope.rows.keys import key_of

SCHEMA = "gradscope/track/1"


@dataclass
class Adding:
    name: str
    asked: int
    done: list = field(default_factory=list)

    def key(self):
        return key_of({"asked": self.asked})

    def measure(self):
        self.done.append(self.name)
        if self.asked < 0:
            raise InputError("below 0")
        return {"answer": self.asked + 1}

    def unmeasured(self, error):
        return {"answer": None, "error": str(error)}


def after(path, done, **asked):
    """Follow the work, and keep what is to be kept: {name: answer}."""
    journal = Journal.read(path, SCHEMA)
    work = list(enumerate(Adding(name, one, done) for name, one in asked.items()))
    found = {}
    for row, is_new in follow(work, len(work), SCHEMA, journal.rows):
        found[row["checkpoint"]] = row["answer"]
        if is_new:
            journal.append(row)
    return found


def test_what_has_a_row_is_kept_and_the_rest_is_done(tmp_path):
    path, done = tmp_path / "rows.jsonl", []
    assert after(path, done, a=1, b=2) == {"a": 2, "b": 3}
    assert after(path, done, a=1, b=2, c=3) == {"a": 2, "b": 3, "c": 4}
    assert done == ["a", "b", "c"]
    assert after(path, done, same_as_c=3) == {"same_as_c": 4}
    assert done == ["a", "b", "c"]


def test_what_failed_is_done_again(tmp_path):
    path, done = tmp_path / "rows.jsonl", []
    assert after(path, done, a=-1) == after(path, done, a=-1) == {"a": None}
    assert done == ["a", "a"]


def test_of_what_is_asked_in_turns_the_last_row_is_of_the_last_question(tmp_path):
    path, done = tmp_path / "rows.jsonl", []
    for asked in (1, 5, 1):
        after(path, done, a=asked)
    assert done == ["a", "a"]
    assert [row["answer"] for row in Journal.read(path).rows] == [2, 6, 2]
    assert sorted(row["answer"] for row in deduplicated(Journal.read(path).rows)) == [2, 6]
