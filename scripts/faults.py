"""The faults that the tests inject, and what a reader says to each.

    python scripts/faults.py    # runs the fault tests and writes reports/faults.csv: test, fault, what was said, whether the test passed

Where one test provokes several messages, the last one stands for it. Folders of this machine are cut out of the messages."""
import re
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest

from symbiosis_nb.core import DataError, atomic_write

TESTS = Path(__file__).parents[1]/"tests"
FILES = ["test_official_faults.py", "test_official_parquet.py", "test_official_attributes.py", "test_official_celeba.py", "test_official_parsing.py",
         "test_fuzz.py", "test_columns.py", "test_pictures.py", "test_loaders.py", "test_core.py", "test_jobs.py", "test_runs.py"]


class Recorder:
    "A pytest plugin that notes every DataError that comes into being while a test runs"
    def __init__(self, root): self.root, self.rows, self.said = root, [], []
    def pytest_runtest_setup(self, item): self.said.clear()
    def pytest_runtest_logreport(self, report):
        if report.when != "call": return
        _, name = report.nodeid.rsplit("::", 1); test, _, fault = name.partition("[")
        said = re.sub(rf"{re.escape(self.root)}/[^/\s]+/?", "", self.said[-1] if self.said else "")
        self.rows.append(dict(file=Path(report.nodeid.split("::")[0]).name, test=test.removeprefix("test_"), fault=fault.rstrip("]"), said=" ".join(said.split())[:300], passed=report.passed))


def main():
    root = tempfile.mkdtemp()
    recorder, plain = Recorder(root), DataError.__init__
    def noted(self, *args, **kwargs): plain(self, *args, **kwargs); recorder.said.append(str(self))
    DataError.__init__ = noted
    code = pytest.main([*(str(TESTS/f) for f in FILES), "-q", "-m", "not gpu and not data", "-p", "no:cacheprovider", "--basetemp", root], plugins=[recorder])
    frame = pd.DataFrame(recorder.rows)
    assert not frame.said.str.contains(root).any(), frame[frame.said.str.contains(root)].said.iloc[0]
    with atomic_write(TESTS.parent/"reports/faults.csv") as tmp: frame.to_csv(tmp, index=False)
    print(frame.groupby("file").agg(tests=("test", "size"), messages=("said", lambda s: (s != "").sum()), passed=("passed", "sum")))
    return code


if __name__ == "__main__": sys.exit(main())
