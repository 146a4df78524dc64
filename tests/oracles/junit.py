"""The rules of the xUnit schema (junit-10) by which Jenkins accepts a document, written down from it."""

import re
from xml.etree import ElementTree

# Tag -> (required attributes, others, children, whether it holds text).
RULES = {
    "testsuites": ((), ("name", "time", "tests", "failures", "errors"), ("testsuite",), False),
    "testsuite": (
        ("name", "tests", "failures", "errors"),
        ("group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"),
        ("testsuite", "properties", "testcase", "system-out", "system-err"),
        False,
    ),
    "properties": ((), (), ("property",), False),
    "property": (("name", "value"), (), (), False),
    "testcase": (
        ("name",),
        ("time", "classname", "group"),
        ("skipped", "error", "failure", "system-out", "system-err"),
        False,
    ),
    **dict.fromkeys(("failure", "error", "skipped"), ((), ("type", "message"), (), True)),
    **dict.fromkeys(("system-out", "system-err"), ((), (), (), True)),
}
TIME = re.compile(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?")


def check_junit(text):
    """Raise AssertionError where a document breaks a rule; ElementTree's where it is no XML."""
    root = ElementTree.fromstring(text)
    assert root.tag in ("testsuites", "testsuite")
    for element in root.iter():
        required, others, children, holds_text = RULES[element.tag]
        assert set(required) <= set(element.attrib) <= {*required, *others}, element.attrib
        assert {child.tag for child in element} <= set(children)
        assert holds_text or not (element.text or "").strip()
        if element.tag.startswith("testsuite"):
            assert TIME.fullmatch(element.get("time", ""))
