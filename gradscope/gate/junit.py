"""Findings as JUnit's XML, as Jenkins, GitLab and others read it: a suite per analysis, a case per budget."""

from __future__ import annotations

import io
import math
from typing import Any

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from gradscope.errors import shown
from gradscope.gate.findings import Finding, Judged, findings
from gradscope.report.analysis import Analysis
from gradscope.report.views import Look


def render_junit(result: Analysis | Judged, look: Look) -> str:
    """A document that the xUnit schema of Jenkins accepts; the numbers are properties of the suite."""
    document: Any = JUnitXml("gradscope")  # its methods are half typed
    suites: dict[str, Any] = {}
    for one in findings(result):
        if one.suite not in suites:
            suites[one.suite] = TestSuite(shown(one.suite))
        suite = suites[one.suite]
        for name, value in one.numbers.items():
            if value is not None and not (isinstance(value, float) and math.isnan(value)):
                suite.add_property(f"{shown(one.name)}.{name}", str(value))
        suite.add_testcase(_case(one))
    for suite in suites.values():
        suite.update_statistics()
        document.add_testsuite(suite)
    document.update_statistics()
    document._elem.attrib.pop("skipped", None)  # of suites alone, the schema says
    written = io.BytesIO()
    document.write(written, pretty=True)
    return written.getvalue().decode("utf-8")


def _case(one: Finding) -> TestCase:
    case, message = TestCase(shown(one.name), classname=shown(one.suite)), shown(one.message)
    if one.outcome == "error":
        case.result = [_told(Failure, message, "budget")]
    elif one.outcome == "unmeasured":
        case.result = [_told(Error, message, "not measured")]
    elif one.outcome == "off":
        case.result = [Skipped("off")]
    else:
        case.system_out = f"warning: {message}" if one.outcome == "warning" else message
    return case


def _told(kind: Any, message: str, what: str) -> Any:
    result = kind(message, what)
    result.text = message
    return result
