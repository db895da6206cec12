"""Where compiled loops are kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from workers import compiling

PACKAGE = Path(compiling.__file__).parent


def test_a_change_of_what_writes_machine_code_is_compiled_anew(tmp_path: Path) -> None:
    copy = tmp_path / "workers"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = compiling.kept_in(copy)
    assert before.name == compiling.kept_in(PACKAGE).name
    with (copy / "models" / "vectors.py").open("a") as file:
        file.write("# another way\n")
    assert compiling.kept_in(copy) != before


def test_loops_are_kept_there_unless_the_user_says_where(tmp_path: Path) -> None:
    script = "from workers import compiling; from numba import config; print(config.CACHE_DIR)"
    told = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(PACKAGE.parent), **asked},
        ).stdout.strip()
        for asked in ({}, {"NUMBA_CACHE_DIR": str(tmp_path)})
    ]
    assert told == [str(compiling.kept_in(PACKAGE)), str(tmp_path)]
