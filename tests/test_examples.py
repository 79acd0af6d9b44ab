"""The examples in docstrings give the results that they show."""

import doctest

import pytest

from tvf_core import fields, integrate


@pytest.mark.parametrize("module", [fields, integrate], ids=lambda module: module.__name__)
def test_docstring_examples_run(module):
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed
