"""`import ccf_plugin` is light, and needs nothing but torch and numpy."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torchattacks", "robustbench", "timm", "torchvision", "matplotlib")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_heavy_library() -> None:
    assert run(f"import sys, ccf_plugin; print([name for name in {HEAVY!r} if name in sys.modules])").strip() == "[]"


def test_the_probe_works_beside_torch_and_numpy_alone() -> None:
    """A finder hides every installed distribution but torch, numpy, and what torch itself requires."""
    assert run(ALONE).strip() == "[]"


ALONE = """
import sys
from importlib import metadata
from importlib.abc import MetaPathFinder
import re

def required(name, found):
    if name in found: return
    try: distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError: return
    found.add(name)
    for line in distribution.requires or []:
        if "extra ==" not in line:
            required(re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-"), found)

allowed = set()
required("torch", allowed)
required("numpy", allowed)
allowed.add("ccf-plugin")
hidden = {
    top for top, owners in metadata.packages_distributions().items()
    if not any(owner.lower().replace("_", "-") in allowed for owner in owners)
}
assert {"matplotlib", "pydantic", "timm"} & hidden or not hidden, hidden

class Hide(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
import torch, ccf_plugin
from ccf_plugin import CrossClassProbe
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
with CrossClassProbe(model, instances=True) as probe:
    for _ in range(2):
        model(torch.rand(6, 1, 2, 2))
        probe.update(torch.arange(6) % 3)
    result = probe.compute()
assert result.matrix.shape == (3, 3) and result.instance_cas is not None
import tempfile, pathlib
with tempfile.TemporaryDirectory() as folder:
    result.save(pathlib.Path(folder) / "found")
    assert ccf_plugin.CrossClassResult.load(pathlib.Path(folder) / "found").cas == result.cas
print(sorted(hidden & set(sys.modules)))
"""
