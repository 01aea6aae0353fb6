"""Where tuned profiles go: files, a server, a store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from xpeft_profiles import (
    RESERVED,
    Profile,
    ProfileInvalid,
    ProfileKey,
    ProfileStoreError,
    check_name,
    check_new_name,
    open_store,
    read_profile_file,
    write_profile_file,
)
from xpeft_server.client_tls import NO_FILES, ClientTls
from xpeft_server.output_file import output_file

from ..profiles.client import ClientError, ServerRefused, shown_upload
from ..profiles.kept_client import KeptProfilesClient

T = TypeVar("T")
_KEYS_AT_ONCE: Final = 1000  # in one question to a store
_FOR_GOOD: Final = (403, 409)  # the key's role, another bank


class SinkFailed(Exception):
    """The profile is not kept, or nobody can say; the message is for people."""


class SinkRefused(SinkFailed):
    """The same profile would be refused again."""


class Sink(Protocol):
    """Raises: SinkFailed from every method."""

    @property
    def bank(self) -> str | None:
        """Fingerprint of the bank whose profiles it takes; None: those of every bank."""

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """Name → version, of those of the names that are there."""

    def put(self, name: str, profile: Profile) -> str:
        """Keep the profile, in place of what has this name; it is durable on return. A line about what was done."""


class FileSink:
    """Profile files, each there whole or not at all.

    Args: path_of: name → file; overwrite: whether it may be there already.
    """

    bank = None

    def __init__(self, path_of: Callable[[str], Path], *, overwrite: bool) -> None:
        self._path_of = path_of
        self._overwrite = overwrite

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """A file that is damaged counts as not there."""
        return {name: version for name in names if (version := self._version(self._path_of(name)))}

    def put(self, name: str, profile: Profile) -> str:
        path, file = self._path_of(name), write_profile_file(profile)
        try:
            with output_file(path, overwrite=self._overwrite) as target:
                target.write(file)
        except OSError as error:
            raise SinkFailed(f"{path} cannot be written: {error.strerror or error}") from None
        return f"wrote {path} ({len(file)} bytes)"

    def _version(self, path: Path) -> str | None:
        try:
            return read_profile_file(path.read_bytes()).version
        except (FileNotFoundError, ProfileInvalid):
            return None
        except OSError as error:
            raise SinkFailed(f"{path} cannot be read: {error.strerror or error}") from None


class ServerSink:
    """A running server. Asked at once for its bank and whether the key may write: no mistake shall cost a tuning.

    One that is busy or draining is asked again. To be closed.
    """

    def __init__(self, url: str, api_key: str | None, tls: ClientTls = NO_FILES) -> None:
        try:
            self._client = KeptProfilesClient(url, api_key, tls)
            with closing(self._client):  # no server keeps it for as long as the first profile takes
                self.bank = self._client.bank()
                self._check_role()
        except ClientError as error:
            raise SinkFailed(str(error)) from None

    def _check_role(self) -> None:
        """By uploading what no profile can be called, which only a key that may write is told. Raises: ClientError."""
        try:
            self._client.put(RESERVED, b"", if_match=None, if_none_match=None)
        except ServerRefused as refusal:
            if refusal.code != "reserved_name":
                raise

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        if not names:
            return {}
        wanted = set(names)
        try:
            every = self._client.list(prefix=_common_prefix(names), limit=None)
            return {each["name"]: each["version"] for each in every if each["name"] in wanted}
        except ClientError as error:
            raise SinkFailed(str(error)) from None

    def put(self, name: str, profile: Profile) -> str:
        try:
            answer = self._client.put(name, write_profile_file(profile), if_match=None, if_none_match=None)
        except ClientError as error:
            refused = isinstance(error, ServerRefused) and error.status in _FOR_GOOD
            raise (SinkRefused if refused else SinkFailed)(str(error)) from None
        return shown_upload(name, answer)

    def close(self) -> None:
        self._client.close()


class StoreSink:
    """A store that servers read, written without any of them. Opened when it is made; to be closed."""

    bank = None

    def __init__(self, url: str, tenant: str) -> None:
        try:
            check_name(tenant, param="tenant")
            self._store = open_store(url)
        except ProfileStoreError as error:
            raise SinkFailed(error.message) from None
        if self._store.scheme == "memory":
            raise SinkFailed(f"store is {url!r}: nothing would be left of the profiles when the command ends")
        self._tenant = tenant
        self._loop = asyncio.Runner()
        try:
            self._run(self._store.open())
        except SinkFailed:
            self._loop.close()
            raise

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(names), _KEYS_AT_ONCE):
            some = names[start : start + _KEYS_AT_ONCE]
            versions = self._run(self._store.versions([ProfileKey(self._tenant, name) for name in some]))
            found.update((name, version) for name, version in zip(some, versions, strict=True) if version)
        return found

    def put(self, name: str, profile: Profile) -> str:
        try:
            check_new_name(name)
        except ProfileInvalid as error:
            raise SinkFailed(error.message) from None
        outcome = self._run(self._store.put(ProfileKey(self._tenant, name), profile))
        return f"{'created' if outcome.status == 'created' else 'stored'} {name} {outcome.version}"

    def close(self) -> None:
        try:
            self._run(self._store.close())
        finally:
            self._loop.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.run(call)
        except ProfileStoreError as error:
            raise SinkFailed(error.message) from None


def check_bank(sinks: Sequence[Sink], fingerprint: str) -> None:
    """Raises: SinkFailed if one of them takes no profiles of this bank."""
    for sink in sinks:
        if sink.bank not in (None, fingerprint):
            raise SinkFailed(f"bank is {fingerprint}, the server has {sink.bank}: give its --plm and --bank")


def _common_prefix(names: Sequence[str]) -> str:
    """What the first and the last in order share, all between them share too."""
    both = zip(min(names), max(names), strict=False)
    return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], both))
