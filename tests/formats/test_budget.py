"""The budget of a file, and what draws on it before anything is made."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from oracles.bombs import field

from gradscope.errors import InputError
from gradscope.formats.budget import ALLOWANCE, EXPANSION, OBJECT, Budget
from gradscope.formats.json_text import parsed
from gradscope.formats.protobuf import pay


def test_arrays_and_all_else_have_a_limit_each():
    budget = Budget(1000)
    room = EXPANSION * 1000 + ALLOWANCE
    budget.unpack(room)
    budget.draw(size=room - OBJECT)
    with pytest.raises(InputError, match=f"unpacks to {room + 1} bytes, more than the {room} allowed"):
        budget.unpack(room + 1)
    with pytest.raises(InputError, match=f"more than the {room} bytes of memory allowed for its 1000"):
        budget.draw()


@pytest.mark.parametrize("excess", ["unpack", "draw"])
def test_what_the_message_says_to_do_helps(excess):
    amount = EXPANSION * 10 + ALLOWANCE + 5

    def take(budget):
        budget.unpack(amount) if excess == "unpack" else budget.draw(size=amount)

    with pytest.raises(InputError) as caught:
        take(Budget(10))
    take(Budget(10, int(re.search(r"--max-size (\d+)", str(caught.value))[1])))
    with pytest.raises(InputError, match=r"allowed.*: pack it less"):
        take(Budget(10, remedy="pack it less"))


def test_a_small_max_size_is_about_arrays():
    budget = Budget(10, 5)
    budget.draw(1000)
    with pytest.raises(InputError, match="more than the 5 allowed"):
        budget.unpack(6)


def test_json_is_paid_for_before_it_is_made():
    budget = Budget(10)
    assert parsed('{"a": [1, {}]}', budget) == {"a": [1, {}]}
    # Two dicts, a list, a comma, a colon.
    assert budget.spent == OBJECT * (1 + 2 * 4 + 2 + 1 + 1) - OBJECT + 14
    with pytest.raises(InputError, match="allowed"):
        parsed("[" + "{}," * 10**6 + "{}]", budget)


class Kind:
    """A descriptor of messages that hold one another under 1 and text under 2 and 6."""

    def __init__(self):
        inner = SimpleNamespace(message_type=self)
        text, note = (SimpleNamespace(message_type=None, type=9, name=n) for n in ("name", "doc_string"))
        self.fields_by_number = {1: inner, 2: text, 6: note}


def test_messages_are_paid_for_by_count():
    budget = Budget(10)
    # Text of 300 bytes, a varint, eight and four bytes; then a message in a message.
    plain = field(2, b"\x0a" * 300) + b"\x18\xff\xff\x01" + b"\x21" + bytes(8) + b"\x2d" + bytes(4)
    pay(plain, Kind(), budget)
    flat = budget.spent
    assert flat == OBJECT * (4 + 4)
    pay(field(1, field(1, b"")), Kind(), budget)
    assert budget.spent - flat == OBJECT * (3 * 4 + 2)
    pay(field(6, b"\xff"), Kind(), budget)
    refused = {b"\x0b": "wire type 3", deep(101): "nested more than 100", field(2, b"a\xff"): "not UTF-8"}
    for bad, words in refused.items():
        with pytest.raises(InputError, match=words):
            pay(bad, Kind(), Budget(10))
    with pytest.raises(IndexError):
        pay(b"\x0a", Kind(), budget)


def deep(levels):
    data = b""
    for _ in range(levels):
        data = field(1, data)
    return data
