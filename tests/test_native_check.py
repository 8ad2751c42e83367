"""The trial of the compiled kernels: one that computes something else is named, and then none is used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fas.neurons.native import build, decoding, kernels
from fas.neurons.native.check import wrong_kernels

pytestmark = pytest.mark.skipif(build.loaded() is None, reason="no C++ compiler: there is nothing to try out")
NAMES = sorted(set(kernels._SIGNATURES) - {"fas_shares", "fas_lanes"})


@pytest.fixture
def filled() -> Iterator[None]:
    """Memory that nobody has written to holds no results of earlier calls."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("filled")
def test_a_kernel_that_does_nothing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = kernels.function_of

    def function_of(asked: str) -> Any:
        return (lambda *arguments: -1) if asked == name else plain(asked)

    monkeypatch.setattr(kernels, "function_of", function_of)
    monkeypatch.setattr(decoding, "function_of", function_of)
    assert wrong_kernels() == [name]


@pytest.mark.parametrize(
    "context", [FakeTensorMode(), torch.device("meta"), torch.enable_grad()], ids=["traced", "meta", "gradients"]
)
def test_it_may_be_asked_for_anywhere(context: AbstractContextManager[Any]) -> None:
    """The first to need kernels may trace, or make tensors elsewhere; random numbers are drawn from nobody."""
    before = torch.get_rng_state()
    with context:
        assert wrong_kernels() == []
    assert torch.equal(torch.get_rng_state(), before)


SAYS = """
import warnings, torch
from fas.neurons import qcfs
from fas.neurons.native import build
build.FLAGS = (*build.FLAGS, "-ffast-math", "-O0")
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    qcfs(torch.ones(1, 2), torch.ones(2), 4, True)
    print([round(v, 4) for v in qcfs(torch.tensor([[.2, .7]]), torch.ones(2), 4, True)[0].tolist()], build.library())
print(len(found), *[str(entry.message) for entry in found])
"""


def test_a_library_that_rounds_otherwise_is_not_used(tmp_path: Path) -> None:
    """The compiler was told that rounding and NaN do not matter; it is said once."""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(build.__file__).parents[3])
    done = subprocess.run([sys.executable, "-c", SAYS], env=environment, capture_output=True, text=True, check=True)
    values, message = done.stdout.splitlines()
    assert values == "[0.25, 0.75] None"
    assert message.startswith("1 compiled kernels do not compute here what PyTorch does (fas_")
    assert "FAS_NATIVE=0 says that this is meant" in message


def test_the_architecture_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a library of its own."""
    asked: list[str] = []

    def compiler(command: list[str]) -> None:
        asked.append(command[1])
        Path(command[command.index("-o") + 1]).write_text("")

    monkeypatch.setattr(build, "_run", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = set()
    for name in (None, "x86-64-v3"):
        if name is None:
            monkeypatch.delenv(build.ARCHITECTURE, raising=False)
        else:
            monkeypatch.setenv(build.ARCHITECTURE, name)
        made.add(build._compiled("c++"))
    assert asked == ["-march=native", "-march=x86-64-v3"]
    assert len(made) == 2
