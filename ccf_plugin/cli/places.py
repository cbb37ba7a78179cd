"""Where a command's files go: nothing that was measured otherwise is overwritten unless --force says so."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.files import PICTURES, check_writable, expanded_path, made_folder, write_together
from ccf_plugin.tables import FORMS

Read = Callable[[Path], Mapping[str, Any] | None]
_SUFFIXES = (".npz", ".json", *PICTURES, *FORMS)


def read_provenance(file: Path) -> Mapping[str, Any] | None:
    """The provenance in a result's JSON; None where the file says nothing of it."""
    try:
        provenance = json.loads(file.read_text(encoding="utf-8"))["provenance"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return provenance if isinstance(provenance, dict) and provenance else None


def endings_of(formats: str | None, out: Path | None = None, known: Sequence[str] = PICTURES) -> list[str]:
    """The endings of the files that ``formats`` asks for, such as "pdf,png"; without, that of a picture at ``out``.

    Raises:
        InputError: another format.
    """
    endings = [f".{part.strip().lower().removeprefix('.')}" for part in (formats or "").split(",") if part.strip()]
    if not set(endings) <= set(known) or (formats is not None and not endings):
        expected = f"some of {', '.join(known)}, with commas between".replace(".", "")
        raise InputError(Fault("formats", expected, repr(formats)))
    if not endings:
        endings = [out.suffix if out is not None and out.suffix in PICTURES else ".png"]
    return list(dict.fromkeys(endings))


class Place:
    """The files of one result, ``stem`` and a suffix each; the first suffix is that of the one with the provenance.

    ``stem`` is what the user named, else a name in ``results``. Where that is taken by a result of other conditions
    (``measuring.provenance``), the name goes on with what differs: "digits-PGD20-Linf-8of255-limit3".

    Args:
        out: what the user named, or None; a folder is where the files go, under the name that they have otherwise.
        name: what the files are called otherwise.
        provenance: of the result to come, as JSON gives it back.
        suffixes: of the files; "" is a single file, which is called just as ``out`` says.
        force: replace existing files.
        read: gives the provenance of what lies there; None: unknown, so that it is not replaced.

    Raises:
        InputError: what the user named is a folder, or holds a result of other conditions or another file.
        OSError: nothing can be written there.
    """

    def __init__(
        self,
        out: Path | None,
        name: str,
        provenance: Mapping[str, Any],
        suffixes: Sequence[str] = (".json",),
        *,
        force: bool = False,
        read: Read = read_provenance,
    ) -> None:
        self._provenance, self._suffixes, self._force, self._read = provenance, suffixes, force, read
        folder = Path("results")
        if out is not None and suffixes != ("",) and takes_files(out):
            folder, out = expanded_path(out), None
        self._default = folder / name
        if out is None:
            self.stem = self._free(self._default)
        else:
            self.stem = _stem(out, suffixes)
            self._check(self.stem)
        check_writable(self.stem.parent)

    def file(self, suffix: str | None = None) -> Path:
        """The file of a suffix; of the first one by default."""
        return self._file(self.stem, self._suffixes[0] if suffix is None else suffix)

    def free_files(self) -> Iterator[Path]:
        """The first file, and those that would come in its stead, as far as they may be written now."""
        for candidate in self._candidates(self._default):
            if self._may_write(candidate):
                yield self._file(candidate, self._suffixes[0])

    def write(self, contents: Mapping[str, bytes]) -> list[Path]:
        """Write the files of these suffixes, all or none; folders are made as needed.

        Another process may have written to the first name since: then another is taken, and nothing is lost.
        """
        with made_folder(self.stem.parent), _alone_in(self.stem.parent):
            if not self._may_write(self.stem):
                self.stem = self._free(self.stem)
            files = {self.file(suffix): content for suffix, content in contents.items()}
            write_together(files)
        return list(files)

    def _check(self, stem: Path) -> None:
        parent = next(folder for folder in (stem.parent, *stem.parent.parents) if folder.exists())
        if not parent.is_dir():
            raise InputError(Fault("", f"a folder at {parent}", "a file", "choose another {out}"))
        for file in self._files(stem):
            if file.is_dir():
                raise InputError(Fault("", "a file to write", f"the folder {file}", "choose another {out}"))
        if not self._may_write(stem):  # before anything is measured
            from ccf_plugin.measuring.provenance import in_words

            saved = self._there(stem)
            problem = (
                "another file" if saved is None else f"one of other conditions ({in_words(saved, self._provenance)})"
            )
            existing = next(file for file in self._files(stem) if file.exists())
            remedy = "choose another {out}, or replace it by {force}"
            raise InputError(Fault(str(existing), "no file yet, or a result of the same conditions", problem, remedy))

    def _free(self, stem: Path) -> Path:
        return next(candidate for candidate in self._candidates(stem) if self._may_write(candidate))

    def _candidates(self, stem: Path) -> Iterator[Path]:
        from ccf_plugin.measuring.provenance import conditions_hash, name_parts

        yield stem
        saved = self._there(stem)
        parts = [] if saved is None else name_parts(saved, self._provenance)
        if parts:
            yield stem.with_name("-".join([stem.name, *parts]))
        parts.append(conditions_hash(self._provenance))
        yield stem.with_name("-".join([stem.name, *parts]))
        number = 2
        while True:
            yield stem.with_name("-".join([stem.name, *parts, str(number)]))
            number += 1

    def _may_write(self, stem: Path) -> bool:
        """Whether nothing lies there, or a result of the same conditions."""
        from ccf_plugin.measuring.provenance import differences

        if self._force or not any(file.exists() or file.is_symlink() for file in self._files(stem)):
            return True
        saved = self._there(stem)
        return saved is not None and not differences(saved, self._provenance)

    def _there(self, stem: Path) -> Mapping[str, Any] | None:
        return self._read(self._file(stem, self._suffixes[0]))

    def _files(self, stem: Path) -> list[Path]:
        return [self._file(stem, suffix) for suffix in self._suffixes]

    @staticmethod
    def _file(stem: Path, suffix: str) -> Path:
        return stem.with_name(f"{stem.name}{suffix}") if suffix else stem


@contextlib.contextmanager
def growing_file(
    out: Path | None,
    name: str,
    provenance: Mapping[str, Any],
    suffix: str = ".json",
    *,
    force: bool = False,
    read: Read = read_provenance,
) -> Iterator[Path]:
    """The one file that a command writes to again and again, kept to it until the block ends; its folder is made.

    A file that the user names may be there, for the command to go on from, whatever it holds. Other arguments and
    errors are those of ``Place``.

    Raises:
        LockedError: another process writes to the file that the user named.
    """
    from ccf_plugin.runs.folder import LockedError

    if out is None or takes_files(out):
        place = Place(out, name, provenance, (suffix,), force=force, read=read)
        folder, files = place.file().parent, place.free_files()
    else:
        named = named_file(out, suffix)
        folder, files = named.parent, iter([named])
        check_writable(folder)
    with made_folder(folder), contextlib.ExitStack() as kept:
        with _alone_in(folder):
            file = next((file for file in files if _is_kept(file, kept)), None)
        if file is None:
            expected, remedy = "a file that no other process writes", "wait for it to end, or choose another {out}"
            raise LockedError(Fault("", expected, f"{out} locked by one", remedy))
        yield file


def _is_kept(file: Path, kept: contextlib.ExitStack) -> bool:
    """Keep a file to this process until ``kept`` ends; False where another process does."""
    from filelock import FileLock, Timeout

    try:
        kept.enter_context(FileLock(_lock_of(file), timeout=0))
    except Timeout:
        return False
    return True


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other command of this machine writes into a folder; nothing is left in it."""
    from filelock import FileLock

    with FileLock(_lock_of(folder)):
        yield


def _lock_of(path: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
    user = os.getuid() if hasattr(os, "getuid") else ""  # whose files others cannot open
    return Path(tempfile.gettempdir()) / f"ccf-{user}-{digest}.lock"


def takes_files(out: Path) -> bool:
    """Whether a user names a folder that is there, for files to go into under their own names."""
    path = expanded_path(out)
    return path.is_dir() and path.suffix not in _SUFFIXES


def named_file(out: Path, suffix: str) -> Path:
    """The file that a user names, with or without its ending. Raises InputError where that is a folder."""
    if expanded_path(out).is_dir():
        raise InputError(Fault("", "a file to write", f"the folder {out}", "choose another {out}"))
    stem = _stem(out, (suffix,))
    return stem.with_name(f"{stem.name}{suffix}")


def _stem(out: Path, suffixes: Sequence[str]) -> Path:
    stem = expanded_path(out)
    return stem.with_suffix("") if suffixes != ("",) and stem.suffix in _SUFFIXES else stem
