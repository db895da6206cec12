"""A peer's environment is made once, with what is built in it; who cannot build is told what is missing."""

import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks import environments

_VERSION = f"py{sys.version_info.major}.{sys.version_info.minor}"


def folder_of(peer: str, cache: Path, pins: Path) -> Path:
    lists = [path for path in (pins / f"{peer}.txt", pins / f"{peer}-built.txt") if path.exists()]
    version = hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()[:12]
    return cache / f"{peer}-{_VERSION}-{version}"


def write_wheel(folder: Path) -> Path:
    """Write a wheel that holds one module."""
    path = folder / "peer_of_tests-1.0-py3-none-any.whl"
    info = "peer_of_tests-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("peer_of_tests.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: peer-of-tests\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_an_environment_is_made_once_and_only_where_asked(tmp_path: Path) -> None:
    pins, cache = tmp_path / "pins", tmp_path / "cache"
    pins.mkdir()
    (pins / "peer.txt").write_text(f"{write_wheel(tmp_path)}\n")
    assert environments.python_of("peer", cache, make=False, pins=pins) is None
    python = environments.python_of("peer", cache, make=True, pins=pins)
    assert python is not None
    assert list(python.parent.parent.glob("lib/python*/site-packages/peer_of_tests.py"))
    (tmp_path / "peer_of_tests-1.0-py3-none-any.whl").unlink()
    assert environments.python_of("peer", cache, make=False, pins=pins) == python


def test_what_cannot_be_installed_is_said_with_where_all_of_it_stands(tmp_path: Path) -> None:
    (tmp_path / "peer.txt").write_text("./not-there-1.0-py3-none-any.whl\n")
    with pytest.raises(RuntimeError, match=r"(?s)peer cannot be installed: .*install\.log") as refused:
        environments.python_of("peer", tmp_path / "cache", make=True, pins=tmp_path)
    assert "not-there" in str(refused.value)
    assert environments.python_of("peer", tmp_path / "cache", make=False, pins=tmp_path) is None


def test_without_a_compiler_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peer.txt").write_text("")
    (tmp_path / "peer-built.txt").write_text("peer==1.0\n")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="there is no no-such-compiler on this machine; install"):
        environments.python_of("peer", tmp_path / "cache", make=True, pins=tmp_path)
    assert not folder_of("peer", tmp_path / "cache", tmp_path).exists()


@pytest.mark.skipif(shutil.which("nice") is None, reason="nice is not on this machine")
def test_what_is_built_must_be_what_was_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # any program that is there
    wheel = write_wheel(tmp_path)
    (tmp_path / "peer.txt").write_text("")
    (tmp_path / "peer-built.txt").write_text(f"{wheel.as_uri()} --hash=sha256:{'0' * 64}\n")
    with pytest.raises(RuntimeError, match=r"build\.log") as refused:
        environments.python_of("peer", tmp_path / "cache", make=True, pins=tmp_path)
    assert "Got" in str(refused.value)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "peer-built.txt").write_text(f"{wheel.as_uri()} --hash=sha256:{digest}\n")
    assert environments.python_of("peer", tmp_path / "cache", make=True, pins=tmp_path) is not None


def test_a_build_tells_how_far_it_is() -> None:
    said = "  [1/87] Building C object a.o\n  [12/87] Building CXX object b.o\nnote: something [13/87]\n"
    assert environments.progress(said) == "step 12 of 87"
    assert environments.progress("Collecting cmake\n") is None
