"""`xpeft serve` as a target of load: started with a key for each tenant, or already running at a URL."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from xpeft_profiles import BankGeometry
from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_file import new_key, write_keys
from xpeft_server.client_tls import NO_FILES, ClientTls

from .server_client import ServerClient, ServerRefused, geometry_of, http_request
from .server_process import ServerProcess, free_port


@dataclass(frozen=True, slots=True)
class XpeftTarget:
    """A ready server. ``keys``: one a tenant, None for a server without keys. ``process``: None if it is not ours."""

    client: ServerClient
    keys: tuple[str | None, ...]
    process: ServerProcess | None

    def key_of(self, profile: int) -> str | None:
        """Profiles are dealt to the tenants in turn."""
        return self.keys[profile % len(self.keys)]

    def register(self, profiles: int, *, seed: int, bank: str, dtype: str) -> None:
        """Upload the random profiles. Raises: ServerRefused, if the bank or dtype is another one than measured, too."""
        info = self.client.info(self.keys[0])
        geometry = geometry_of(info)
        for name, has, wanted in (("bank", geometry.fingerprint, bank), ("dtype", info["dtype"], dtype)):
            if has != wanted:
                raise ServerRefused(f"the server's {name} is {has}, the engine measured beside it has {wanted}")
        self.put_profiles(profiles, geometry, seed=seed)

    def put_profiles(self, profiles: int, geometry: BankGeometry, *, seed: int) -> None:
        """Upload random profiles. Raises: ServerRefused."""
        for index in range(profiles):
            self.client.put_profile(profile_name(index), geometry, self.key_of(index), seed=seed, index=index)

    def requests(self, texts: Sequence[str], owners: Sequence[int]) -> list[str]:
        """A classify request for each text, whole."""
        return [
            http_request(
                "/v1/classify",
                {"profile": profile_name(owner), "input": text, "truncate": True},
                host=self.client.host,
                port=self.client.port,
                key=self.key_of(owner),
            )
            for text, owner in zip(texts, owners, strict=True)
        ]


def profile_name(index: int) -> str:
    return f"bench-{index:06d}"


def serve_options(
    plm: str, bank: str, device: str, dtype: str, slots: int | None, http_processes: int
) -> dict[str, str]:
    """Options of ``xpeft serve``, without those that keep their defaults: ``slots`` None, no ``http_processes``."""
    options = {"--plm": plm, "--bank": bank, "--device": device, "--dtype": dtype}
    if slots is not None:
        options["--slots"] = str(slots)
    if http_processes:
        options["--http-processes"] = str(http_processes)
    return options


@contextmanager
def started(options: Mapping[str, str], *, store: str | None, tenants: int) -> Iterator[XpeftTarget]:
    """Run ``xpeft serve`` with these options; without ``store``, over an SQLite file that is removed again.

    Raises: ServerFailed.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xpeft-bench-")))
        keys = _write_tenant_keys(folder / "keys.json", tenants)
        port = free_port()
        every = {
            **options,
            "--store": store or f"sqlite:///{folder / 'profiles.db'}",
            "--api-keys": str(folder / "keys.json"),
            "--host": "127.0.0.1",
            "--port": str(port),
        }
        command = [*_program(), "serve", "--metrics-open", *(word for option in every.items() for word in option)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("XPEFT_")}
        process = stack.enter_context(ServerProcess(command, port=port, ready="/ready", environment=environment))
        yield XpeftTarget(ServerClient(f"http://127.0.0.1:{port}"), keys, process)


def _program() -> list[str]:
    """``xpeft`` of this environment, or its module where the packages are found without being installed."""
    installed = Path(sys.executable).with_name("xpeft")
    return [str(installed)] if installed.exists() else [sys.executable, "-P", "-m", "xpeft_server.cli"]


def met_at(url: str, key: str | None, tls: ClientTls = NO_FILES) -> XpeftTarget:
    """A server that runs already, as one tenant.

    Args: tls: for a server over https. Raises: ServerRefused if one of these cannot be used.
    """
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ServerRefused(f"{url}: the API key has characters that no key has: copy it again")
    return XpeftTarget(ServerClient(url, tls), (key,), None)


def _write_tenant_keys(path: Path, tenants: int) -> tuple[str, ...]:
    made = [
        new_key(id=f"bench-{number}", tenant=f"bench-tenant-{number}", role=Role.ADMIN, expires=None)
        for number in range(tenants)
    ]
    write_keys(path, [entry for _, entry in made])
    return tuple(secret for secret, _ in made)
