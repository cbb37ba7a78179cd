"""fix-tinyimagenet. Heavy imports happen inside the command, so that --help is instant."""

from __future__ import annotations

from ccf_plugin.cli import options
from ccf_plugin.errors import counted


def fix_tinyimagenet(data_root: options.DataRoot = None) -> None:
    """Sort Tiny-ImageNet's validation images into one folder per class, for programs that need it (ccf does not)."""
    from ccf_plugin.zoo.folders import DATA_FOLDER, folder_from
    from ccf_plugin.zoo.readers.imagenet import rearrange_validation

    print(f"{counted(rearrange_validation(folder_from(data_root, DATA_FOLDER)), 'image')} moved")  # noqa: T201
