"""Without the other library an integration says what to install; with it, tests/integrations has the tests."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "missing", "to_install"),
    [("curator", "nemo_curator", "nemo-curator"), ("fiftyone", "fiftyone", "fiftyone")],
)
def test_a_library_that_is_missing_is_named_with_what_to_install(monkeypatch, module, missing, to_install):
    name = f"safeqwen.scan.integrations.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"{name} needs {missing}.*: pip install {to_install}$"):
        importlib.import_module(name)
