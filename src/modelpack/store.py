"""Where artifacts live. Draft → commit is the only write; a present artifact is a complete one.

::

    store.json                  {"schema": 1}
    artifacts/7e/7eeeba95…/     manifest.json + payload
    cache/<fingerprint>         the artifact's id
    scratch/<fingerprint>/      what an interrupted try left for the next one
    runs/<recipe>/0007/         written by `runs`
    shared/                     what steps keep to save time, for any later step; nothing depends on it
    tmp/                        drafts, on the same file system so that publishing is one rename
    lock                        shared while running, exclusive while collecting
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

from modelpack import canonical, drafts
from modelpack.artifact import MANIFEST, Artifact, Kind, Manifest
from modelpack.disk import sync, write_atomic, writing
from modelpack.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from modelpack.drafts import Draft

SCHEMA = 1
_DIRECTORIES = ("artifacts", "cache", "runs", "scratch", "shared", "tmp")
_SKELETON = (*_DIRECTORIES, "lock", "store.json")
_PREFIX = re.compile(r"[0-9a-f]{6,64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class Store:
    """A directory of artifacts, shared by any number of processes."""

    def __init__(self, root: Path) -> None:
        """Open a store without creating it; reading a store that does not exist finds nothing.

        Raises:
            StoreError: When the directory is something else, or of a newer modelpack.
        """
        self.root = root
        marker = root / "store.json"
        try:
            if not root.exists():
                return
        except OSError as error:
            raise StoreError(f"cannot look in: {(error.strerror or '').lower()}", where=str(root)) from error
        if not root.is_dir():
            raise StoreError("the store's place is not a directory", where=str(root))
        try:
            schema = json.loads(marker.read_bytes())["schema"]
        except FileNotFoundError:
            # Another process may be making this store right now, or was killed while it did.
            if any(path.name not in _SKELETON and not path.name.startswith(".store.json") for path in root.iterdir()):
                raise StoreError(
                    "the directory is not empty and is no modelpack store",
                    where=str(root),
                    then="choose another --store",
                ) from None
            return
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise StoreError(f"the store's marker cannot be read: {error}", where=str(marker)) from error
        if schema != SCHEMA:
            raise StoreError(f"the store has schema {schema!r}, this modelpack reads {SCHEMA}", where=str(root))

    def prepare(self) -> None:
        """Create what is missing of the store's skeleton.

        Raises:
            StoreError: When it cannot be written.
        """
        with writing(self.root):
            for name in _DIRECTORIES:
                (self.root / name).mkdir(parents=True, exist_ok=True)
            if not os.access(self.root / "tmp", os.W_OK):
                sealed = os.statvfs(self.root).f_flag & os.ST_RDONLY
                raise OSError(errno.EROFS if sealed else errno.EACCES, "not writable", str(self.root))
            if not (self.root / "store.json").exists():
                write_atomic(self.root / "store.json", canonical.encode({"schema": SCHEMA}) + b"\n")

    @contextlib.contextmanager
    def locked(self, *, exclusive: bool = False) -> Iterator[None]:
        """Hold the store's lock: shared while running, exclusive while collecting.

        Raises:
            StoreError: When another process holds it the other way.
        """
        self.prepare()
        with writing(self.root), (self.root / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                busy = "a run is using the store" if exclusive else "the store is being cleaned"
                raise StoreError(busy, where=str(self.root), then="try again when it has finished") from None
            yield

    @property
    def shared(self) -> Path:
        """Directory of what steps keep to save time; `collect` empties it."""
        return self.root / "shared"

    @contextlib.contextmanager
    def claim(self, fingerprint: str, waiting: Callable[[], None] = lambda: None) -> Iterator[Path]:
        """Hold one piece of work; gives its scratch directory.

        Args:
            fingerprint: The work.
            waiting: Called when another process is doing the same, before waiting for it.
        """
        with writing(self.root):
            scratch = self.root / "scratch" / fingerprint
            handle = (self.root / "scratch" / f"{fingerprint}.lock").open("w")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
            with writing(self.root):
                scratch.mkdir(exist_ok=True)
            yield scratch

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft]:
        """Give an empty directory on the store's file system; it is removed unless committed."""
        with drafts.opened(self.root / "tmp", self.root) as draft:
            yield draft

    def commit(
        self, draft: Draft, kind: Kind, work: Mapping[str, Any], record: Mapping[str, Any], *, cached: bool = True
    ) -> Artifact:
        """Seal a draft: hash, sync, write the manifest last, point the cache at it, publish with one rename.

        The same id committed twice keeps the first copy, unless that one is damaged. What was not made here is not
        `cached`: no step shall take somebody else's word for its result.

        Raises:
            StoreError: When the draft holds a link or something that is no plain file, or cannot be written.
        """
        with writing(draft.path):
            manifest = Manifest(
                kind, json.loads(canonical.encode(work)), drafts.sealed(draft), json.loads(canonical.encode(record))
            )
            (draft.path / MANIFEST).write_bytes(manifest.encode())
            (draft.path / MANIFEST).chmod(0o444)
            for directory in [draft.path, *(p for p in draft.path.rglob("*") if p.is_dir())]:
                sync(directory)
            sync(draft.path / MANIFEST)
            place = self._place(manifest.id)
            place.parent.mkdir(exist_ok=True)
            # The reference first: one that leads nowhere is no result, but an artifact nobody knows of is lost work.
            if cached:
                write_atomic(self.root / "cache" / manifest.fingerprint, manifest.id.encode())
            if place.exists() and not _intact(place):
                place.rename(draft.path.with_name(f"{draft.path.name}-damaged"))
            try:
                draft.path.rename(place)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            sync(place.parent)
            shutil.rmtree(draft.path.with_name(f"{draft.path.name}-damaged"), ignore_errors=True)
            shutil.rmtree(self.root / "scratch" / manifest.fingerprint, ignore_errors=True)
        return Artifact.load(place)

    def _place(self, identity: str) -> Path:
        return self.root / "artifacts" / identity[:2] / identity

    def find(self, fingerprint: str) -> Artifact | None:
        """Give the artifact of a piece of work that was done before, or None.

        Raises:
            StoreError: When the cache names an artifact that is damaged.
        """
        try:
            identity = (self.root / "cache" / fingerprint).read_text(errors="replace")
        except OSError:
            return None
        if not _FINGERPRINT.fullmatch(identity):
            raise StoreError(
                "the cache entry is damaged",
                where=str(self.root / "cache" / fingerprint),
                then="delete this file; the step will run again",
            )
        place = self._place(identity)
        if not place.exists():
            return None
        artifact = Artifact.load(place)
        for item in artifact.manifest.files:
            path = place / item.name
            if not path.is_file() or path.stat().st_size != item.size:
                raise StoreError(
                    "the file is missing or has another size than the manifest says",
                    where=str(path),
                    then=f"delete {place}; the step will run again",
                )
        return artifact

    def get(self, prefix: str) -> Artifact:
        """Give the artifact whose id begins with `prefix` (6 digits or more).

        Raises:
            UsageError: When none or several match.
            StoreError: When it is damaged.
        """
        if not _PREFIX.fullmatch(prefix):
            raise UsageError(f"'{prefix}' is no artifact id", then="give 6 or more of its hexadecimal digits")
        matches = [path for path in self.artifacts() if path.name.startswith(prefix)]
        if len(matches) != 1:
            found = f"{len(matches)} artifacts begin" if matches else "no artifact begins"
            raise UsageError(f"{found} with '{prefix}'", where=str(self.root))
        return Artifact.load(matches[0])

    def artifacts(self) -> list[Path]:
        """List every artifact's directory, sorted by id."""
        return sorted((self.root / "artifacts").glob("??/*"), key=lambda path: path.name)

    def collect(self, keep: Callable[[], Iterable[str]], *, dry_run: bool = False) -> list[Path]:
        """Remove every artifact not in `keep`, every cache entry without artifact, drafts, scratch and what is shared.

        Args:
            keep: Gives the ids to keep, with all ancestors; asked when no run can begin or end any more.
            dry_run: Only list.

        Returns:
            The directories of the artifacts that were (or would be) removed.

        Raises:
            StoreError: When a run is using the store.
        """
        with self.locked(exclusive=True):
            kept = set(keep())
            doomed = [path for path in self.artifacts() if path.name not in kept]
            if dry_run:
                return doomed
            with writing(self.root):
                for entry in (self.root / "cache").iterdir():
                    if _FINGERPRINT.fullmatch(entry.name) and entry.read_text(errors="replace") not in kept:
                        entry.unlink()
                spare = [path for name in ("tmp", "scratch", "shared") for path in (self.root / name).iterdir()]
                for path in [*doomed, *spare]:
                    shutil.rmtree(path) if drafts.is_directory(path) else path.unlink()
        return doomed


def _intact(place: Path) -> bool:
    try:
        return not Artifact.load(place).verify()
    except (StoreError, OSError):
        return False
