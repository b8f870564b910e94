"""For what machines an image is made, and on what base for each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from modelpack import canonical
from modelpack.bind import FromText
from modelpack.container.reference import BaseRef
from modelpack.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = ("linux/amd64", "linux/arm64")
_ASSIGNED = re.compile(r"\s*(linux/[a-z0-9]+)\s*=\s*(.+)")
_ONE_PLATFORM = ("rootfs", "docker-archive")


@dataclass(frozen=True)
class Platforms(FromText):
    """Systems and processors, each once, by name.

    >>> str(Platforms.read("linux/arm64, linux/amd64"))
    'linux/amd64,linux/arm64'
    """

    wanted: ClassVar[str] = "platforms are expected, such as linux/amd64 or linux/amd64,linux/arm64"
    names: tuple[str, ...]

    @classmethod
    def read(cls, text: str, base: Path | None = None) -> Self:  # noqa: ARG003 - they name no files
        """Read names with commas between them."""
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in KNOWN:
                raise ValueError(
                    f"'{name}' is no platform that the server's wheels exist for: {did_you_mean(name, KNOWN)}"
                )
        return cls(tuple(sorted(set(names))))

    def canonical(self) -> object:
        """Stand for the names."""
        return str(self)

    def __str__(self) -> str:
        return ",".join(self.names)


@dataclass(frozen=True)
class Bases(FromText):
    """One base for every platform, or one for each.

    Attributes:
        refs: Platform → base, in the order of the text; the platform is empty where one base is for all.
    """

    wanted: ClassVar[str] = BaseRef.wanted
    refs: tuple[tuple[str, BaseRef], ...]

    @classmethod
    def read(cls, text: str, base: Path) -> Self:
        """Read ``REF``, or ``PLATFORM=REF,PLATFORM=REF``; files are relative to `base`."""
        parts = [_ASSIGNED.fullmatch(part) for part in text.split(",")]
        if not parts[0]:
            return cls((("", BaseRef.read(text, base)),))
        refs: dict[str, BaseRef] = {}
        for part, written in zip(parts, text.split(","), strict=True):
            if part is None:
                raise ValueError(f"'{written.strip()}' has no platform: write linux/amd64=REF,linux/arm64=REF")
            (platform,) = Platforms.read(part[1]).names
            if platform in refs:
                raise ValueError(f"{platform} has two bases")
            refs[platform] = BaseRef.read(part[2].strip(), base)
        return cls(tuple(refs.items()))

    @property
    def pinned(self) -> bool:
        """Whether all can only ever mean the same bytes."""
        return all(ref.pinned for _, ref in self.refs)

    def of(self, platform: str) -> BaseRef:
        """Give the base of a platform.

        Raises:
            UsageError: When it has none.
        """
        found = dict(self.refs)
        if (ref := found.get("") or found.get(platform)) is None:
            raise UsageError(f"there is no base for {platform}", where=f"base {self}", then=f"add {platform}=REF")
        return ref

    def cover(self, platforms: Platforms) -> None:
        """Refuse bases that cannot serve these platforms.

        Raises:
            ValueError: Saying which lacks one.
        """
        named = [platform for platform, _ in self.refs if platform]
        if spare := sorted(set(named) - set(platforms.names)):
            raise ValueError(f"the base for {spare[0]} is for no platform of this image: add it to `platform`")
        if named and (lacking := sorted(set(platforms.names) - set(named))):
            raise ValueError(f"no base for {lacking[0]}: write linux/amd64=REF,linux/arm64=REF")
        _, ref = self.refs[0]
        if not named and len(platforms.names) > 1 and ref.scheme in _ONE_PLATFORM:
            each = ",".join(f"{platform}={ref.scheme}:FILE" for platform in platforms.names)
            raise ValueError(f"{ref.scheme}: holds one platform; name one for each: {each}")

    def canonical(self) -> object:
        """Stand for what `BaseRef.canonical` says of each."""
        if not self.refs[0][0]:
            return self.refs[0][1].canonical()
        return {platform: canonical.plain(ref) for platform, ref in sorted(self.refs)}

    def __str__(self) -> str:
        return ",".join(f"{platform}={ref}" if platform else str(ref) for platform, ref in self.refs)
