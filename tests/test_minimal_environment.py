"""Who cannot accept the pins of robustbench and torchattacks installs with --no-deps: torch and numpy must do."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

PROGRAM = """
import sys, torch
from ccf_plugin import CrossClassProbe, CrossClassResult
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
with CrossClassProbe(model, instances=True) as probe:
    model(torch.rand(6, 1, 2, 2))
    probe.update(torch.tensor([0, 1, 2, 0, 1, 2]))
    result = probe.compute()
result.save("result")
assert CrossClassResult.load("result").cas == result.cas
for absent in ("torchattacks", "robustbench", "timm", "torchvision", "typer", "pydantic", "safetensors", "matplotlib"):
    try:
        __import__(absent)
    except ImportError:
        continue
    sys.exit(f"{absent} is in the environment that should have torch and numpy alone")
print("done")
"""


def _needed(name: str, found: dict[str, metadata.Distribution]) -> None:
    """The distribution and all that it requires here, by name."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return  # for another platform
    if name in found:
        return
    found[name] = distribution
    for requirement in distribution.requires or []:
        if "extra ==" not in requirement:
            _needed(re.split(r"[ <>=!~;\[(]", requirement, maxsplit=1)[0].lower(), found)


@pytest.mark.skipif(sys.platform == "win32", reason="links files")
def test_the_probe_works_where_nothing_but_torch_and_numpy_is_installed(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    distributions: dict[str, metadata.Distribution] = {}
    for name in ("torch", "numpy"):
        _needed(name, distributions)
    for distribution in distributions.values():
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(distribution.locate_file(top)))
    (packages / "ccf_plugin").symlink_to(Path(__file__).parents[1] / "ccf_plugin")
    process = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "-I", "-c", PROGRAM],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, "done\n"), process.stderr
