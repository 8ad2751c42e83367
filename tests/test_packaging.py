"""The wheel, built and installed in a fresh environment, is complete; nothing is fetched."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT_PATH = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

CONTENT = """
from importlib.resources import files
import fas
package = files("fas")
print(package)
for name in ("py.typed", "builtin/evaluation.txt", *(f"builtin/model/{n}" for n in (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")), "builtin/vision/processor_config.json",
    "builtin/vision/model.safetensors", *(f"neurons/native/{n}" for n in ("common.h", "kernels.cpp", "products.cpp"))):
    assert package.joinpath(name).is_file(), name
from fas.pipeline.recipes import read_recipe, recipe_folder, recipe_names
assert recipe_folder().is_relative_to(str(package)) and len(recipe_names()) == 26
assert read_recipe("opt-1.3b").options["coverage"] == "ffn"
from fas.tasks import builtin
assert len(builtin.evaluation_documents()) > 10
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, env=WITHOUT_PATH, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel of this tree; its dependencies are those of the running interpreter."""
    folder = tmp_path_factory.mktemp("packaging")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("fas_snn-*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    bin_folder = folder / "venv" / Path(sysconfig.get_path("scripts")).name
    pip = (sys.executable, "-m", "pip", "--python", bin_folder / "python", "install", "--no-deps", "--no-index")
    run(*pip, wheel, cwd=folder)
    (site_packages,) = (folder / "venv").rglob("site-packages")
    # only now, or pip would take the fas of the running interpreter for the one to replace
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin_folder


def test_the_wheel_is_complete(installed: Path) -> None:
    found = run(installed / "python", "-c", CONTENT, cwd=installed).stdout.strip()
    assert Path(found).is_relative_to(installed.parent)


def test_help_works_without_importing_torch(installed: Path) -> None:
    done = run(installed / "python", "-X", "importtime", installed / "fas", "--help", cwd=installed)
    assert "convert" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert imported & {"torch", "transformers"} == set()
