"""Why something is refused, which is one line that a terminal may show."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradscope.errors import InputError


def told(function, *arguments, **options):
    """The message of the error in which function(*arguments, **options) ends."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable(), "one line, nothing that a terminal would obey"
    given = [one for one in (*arguments, *options.values()) if isinstance(one, str | Path)]
    assert len(message) < 700 + sum(len(str(one)) for one in given)
    return message


def refused(function, *arguments, **options):
    """The same where no list of what there is makes it long."""
    message = told(function, *arguments, **options)
    assert len(message) < 500
    return message
