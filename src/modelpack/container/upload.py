"""Blobs and manifests sent to a registry: not again what it has, mounted where it can be, resumed where it broke.

OCI distribution specification 1.1, "Pushing a blob in chunks", "Mounting a blob from another repository".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from modelpack.container.blob import Blob
from modelpack.container.patience import BrokenError, persist
from modelpack.errors import StageError

if TYPE_CHECKING:
    import requests

    from modelpack.container.http import Registry
    from modelpack.container.reference import ImageName

CHUNK = 32 << 20
"""Most bytes of one request; a broken connection costs no more where the registry keeps what it got."""
_REACHED = re.compile(r"(?:bytes=)?0-(\d+)")
_UNMOUNTABLE = (400, 401, 403, 404, 405)
_LOST = (400, 404, 416)


def scopes(name: ImageName, source: str = "") -> tuple[str, ...]:
    """Name the rights that a push needs: to write here, and to read where blobs are mounted from."""
    here = f"repository:{name.repository}:pull,push"
    return (here, f"repository:{source}:pull") if source else (here,)


def upload(registry: Registry, blob: Blob, source: str = "") -> int:
    """Bring one blob into a repository.

    Args:
        registry: Where to.
        blob: What, with its digest.
        source: Another repository of the same registry, which may have it.

    Returns:
        Bytes that were sent: 0 when the registry had the blob.

    Raises:
        BrokenError: When the connection breaks again and again.
        MissingError: When the registry does not answer or refuses.
        StageError: When the blob is damaged.
    """
    if registry.send("HEAD", f"blobs/{blob.digest}", allow=(200, 404)).status_code == 200:
        registry.moved(blob.size)
        return 0
    for _ in blob.chunks():
        pass  # a damaged blob is found here, not by the registry
    place = _begin(registry, blob.digest, source)
    if not place:
        registry.moved(blob.size)
        return 0
    sending = _Sending(registry, blob, place)
    persist(sending.attempt, lambda: sending.done)
    registry.moved(blob.size - sending.told)
    return blob.size


def put(registry: Registry, reference: str, data: bytes, media_type: str) -> None:
    """Send a manifest or index under a tag or digest; what it names must be there already.

    Raises:
        BrokenError: When the connection breaks again and again.
        MissingError: When the registry does not answer or refuses.
    """
    registry.send("PUT", f"manifests/{reference}", headers={"Content-Type": media_type}, body=data, allow=(200, 201))


def _begin(registry: Registry, digest: str, source: str) -> str:
    """Open an upload; gives its address, or nothing when the blob was mounted instead."""
    if source:
        path = f"blobs/uploads/?mount={digest}&from={source}"
        answer = registry.send("POST", path, allow=(201, 202, *_UNMOUNTABLE))
        if answer.status_code == 201:
            return ""
        if answer.status_code == 202:
            return _location(answer, registry)
    return _location(registry.send("POST", "blobs/uploads/", allow=(202,)), registry)


def _location(answer: requests.Response, registry: Registry) -> str:
    place = answer.headers.get("Location", "")
    if not place:
        raise StageError("the registry opens an upload without saying where", where=str(registry.name))
    return place


class _Sending:
    """One upload on its way: the address where it goes on, how many bytes are there, and how many were told of."""

    def __init__(self, registry: Registry, blob: Blob, place: str) -> None:
        self._registry, self._blob, self._place = registry, blob, place
        self._broken = False
        self.done = self.told = 0

    def attempt(self) -> None:
        """Send what is missing.

        Raises:
            BrokenError: When the connection breaks.
        """
        if self._broken and self._arrived():
            return
        try:
            while self._blob.size - self.done > CHUNK:
                self._patch()
            separator = "&" if "?" in self._place else "?"
            self._send("PUT", f"{self._place}{separator}digest={self._blob.digest}", self._blob.size - self.done)
        except BrokenError:
            self._broken = True
            raise

    def _patch(self) -> None:
        answer = self._send("PATCH", self._place, CHUNK)
        self._place = answer.headers.get("Location", self._place)
        reached = _reached(answer, self.done + CHUNK)
        if not self.done < reached <= self._blob.size:
            raise BrokenError("the registry does not keep what it is sent", where=str(self._registry.name))
        self.done = reached
        self._registry.moved(max(0, self.done - self.told))
        self.told = max(self.told, self.done)

    def _send(self, method: str, place: str, size: int) -> requests.Response:
        piece = Blob(self._blob.path, size, self._blob.offset + self.done)
        headers = {"Content-Type": "application/octet-stream"}
        if 0 < size < self._blob.size:
            headers["Content-Range"] = f"{self.done}-{self.done + size - 1}"
        expected = 202 if method == "PATCH" else 201
        allow = (expected, *_LOST)
        answer = self._registry.send(method, place, headers=headers, body=piece, allow=allow, again=False)
        if answer.status_code == expected:
            return answer
        refusal = self._registry.refusal(method, answer)
        if not self._broken:
            raise refusal
        self._place = ""  # the registry no longer knows of it
        raise BrokenError(refusal.what, where=refusal.where)

    def _arrived(self) -> bool:
        """Ask how far the registry came, begin anew where it does not know; tells whether the blob is there."""
        here = f"blobs/{self._blob.digest}"
        if self._registry.send("HEAD", here, allow=(200, 404), again=False).status_code == 200:
            return True
        self.done = 0
        if self._place:
            with self._registry.send("GET", self._place, allow=(204, *_LOST), again=False) as answer:
                reached = _reached(answer, 0)
            if answer.status_code == 204 and reached <= self._blob.size:
                self._place, self.done = answer.headers.get("Location", self._place), reached
                return False
        self._place = _begin(self._registry, self._blob.digest, "")
        return False


def _reached(answer: requests.Response, otherwise: int) -> int:
    """Read how many bytes a registry says it has; registries say ``0-0`` both for one byte and for none."""
    found = _REACHED.fullmatch(answer.headers.get("Range", ""))
    if found is None:
        return otherwise
    return int(found[1]) + 1 if int(found[1]) else 0
