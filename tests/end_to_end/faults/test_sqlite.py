"""A SQLite file that is locked, damaged, moved away, or on a full disk."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

# A write waits for 5 s at most for another process's, and once more for those that had come before it.
LOCKED_BOUND = 15.0

LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def file_of(world: Any) -> Path:
    path: Path = world.near.log.parent / "profiles.db"
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """By another process."""
    command = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            other.communicate()


def test_a_file_that_another_process_has_locked_refuses_writes_in_time_and_is_read(
    sqlite_pair: Any, assert_unavailable: Any
) -> None:
    near, far = sqlite_pair.near, sqlite_pair.far
    (old, old_version), (new, new_version) = sqlite_pair.profile(1), sqlite_pair.profile(2)
    near.put("locked", old)
    with ThreadPoolExecutor(2) as pool, locked(file_of(sqlite_pair)):
        began = time.monotonic()
        refused = [pool.submit(near.put, "locked", new), pool.submit(far.client.delete, "/v1/profiles/locked")]
        for server in (near, far):
            assert server.classify("locked").json()["profile_version"] == old_version
            assert server.versions()["locked"] == old_version
            assert server.client.get("/ready").status_code == 200
        for each in refused:
            assert_unavailable(each.result(), "store_unavailable")
            assert "database is locked" in each.result().json()["error"]["message"]
        assert time.monotonic() - began < LOCKED_BOUND
    assert near.put("locked", new).status_code == 200
    assert far.classify("locked").json()["profile_version"] == new_version


def test_a_flipped_bit_in_sqlite_is_500_for_that_profile_alone_counted_logged_once_and_healed_by_an_upload(
    sqlite_pair: Any,
) -> None:
    near, far = sqlite_pair.near, sqlite_pair.far
    (body, version), (other, other_version) = sqlite_pair.profile(3), sqlite_pair.profile(4)
    near.put("flipped", body)
    near.put("neighbour", other)
    counted = far.metric("profile_damaged_total")
    with closing(sqlite3.connect(file_of(sqlite_pair))) as connection, connection:
        (record,) = connection.execute("SELECT record FROM profiles WHERE name = 'flipped'").fetchone()
        record = record[:-30] + bytes([record[-30] ^ 1]) + record[-29:]
        connection.execute("UPDATE profiles SET record = ? WHERE name = 'flipped'", (record,))
    sqlite_pair.new_log()
    for answer in (far.classify("flipped"), far.classify("flipped"), far.client.get("/v1/profiles/flipped")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged_profile")
    assert far.classify("neighbour").json()["profile_version"] == other_version
    assert far.metric("profile_damaged_total") == counted + 3
    (line,) = [line for line in sqlite_pair.new_log().splitlines() if '"level": "error"' in line]
    assert f"profile 'flipped' of tenant 'default', version '{version}', is damaged" in line
    assert far.versions()["flipped"] == version
    assert near.put("flipped", body).status_code == 200
    assert far.classify("flipped").json()["profile_version"] == version


def test_a_damaged_page_of_sqlite_is_500_for_the_profiles_on_it_and_costs_the_others_nothing(
    tmp_path: Path, start_server: Any
) -> None:
    path = tmp_path / "profiles.db"
    arguments = (f"sqlite:///{path}",)
    with stopped_at_end(start_server(*arguments, log=tmp_path / "first.log")) as server:
        server.wait_until_ready()
        for number in range(30):
            assert server.put(f"p{number}", server.profile(number)).status_code == 201
    with closing(sqlite3.connect(path)) as connection:
        (record,) = connection.execute("SELECT record FROM profiles WHERE name = 'p15'").fetchone()
    content = bytearray(path.read_bytes())
    while record in content:  # SQLite leaves copies of what it moved.
        begin = content.index(record) // 4096 * 4096
        content[begin : begin + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    with stopped_at_end(start_server(*arguments, log=tmp_path / "second.log")) as server:
        server.wait_until_ready()
        answers = [server.classify(f"p{number}") for number in range(30)]
        lost = [answer for answer in answers if answer.status_code != 200]
        assert answers[15] in lost
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in lost} == {(500, "damaged_profile")}
        assert len(lost) < 30
        assert len(server.versions()) == 30
        assert server.client.get("/ready").status_code == 200
        assert server.metric("profile_damaged_total") == len(lost)
    log = (tmp_path / "second.log").read_text()
    assert log.count(f"{path} has a damaged page") == 1
    assert "does not answer" not in log


@contextmanager
def stopped_at_end(server: Any) -> Iterator[Any]:
    yield server
    server.stop()


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("another", [False, True], ids=["away", "replaced"])
def test_a_file_that_is_moved_away_takes_no_write_that_would_be_lost_and_is_welcome_back(
    sqlite_pair: Any, assert_unavailable: Any, suffix: str, another: bool
) -> None:
    near = sqlite_pair.near
    path = Path(f"{file_of(sqlite_pair)}{suffix}")
    (old, version), (new, _) = sqlite_pair.profile(5), sqlite_pair.profile(6)
    near.put("moved", old)
    assert near.classify("moved").json()["profile_version"] == version
    away = path.with_name("away.db")
    path.rename(away)
    if another:
        path.write_bytes(away.read_bytes())
    assert_unavailable(near.put("moved", new), "store_unavailable")
    assert_unavailable(near.client.get("/v1/profiles/moved"), "store_unavailable")
    near.wait_until_ready(20, status=503)
    assert str(path) in near.client.get("/ready").json()["checks"]["store"]
    answer = near.classify("moved")
    assert (answer.json()["profile_version"], answer.headers["x-profile-unverified"]) == (version, "true")
    away.rename(path)
    near.wait_until_ready(20)
    assert near.versions()["moved"] == version
    answer = near.classify("moved")
    assert answer.json()["profile_version"] == version
    assert "x-profile-unverified" not in answer.headers
    assert near.put("moved", new).status_code == 200


Disk = tuple[Any, Callable[[], None], Callable[[], None]]


@pytest.fixture
def small_disk(tmp_path: Path, start_server: Any) -> Iterator[Disk]:
    """A server whose file lies on a disk of 2 MiB; what fills the disk, and what makes room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk; the limit on the file's size shows the same")
    filler = disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    server = start_server(f"sqlite:///{disk}/profiles.db", log=tmp_path / "server.log")
    server.wait_until_ready()
    yield server, fill, filler.unlink
    server.stop()
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def limited_file(sqlite_pair: Any) -> Iterator[Disk]:
    """A server; what limits its files to their present size, and what takes the limit off."""
    pid, none = sqlite_pair.far.process.pid, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def fill() -> None:
        size = max(each.stat().st_size for each in file_of(sqlite_pair).parent.iterdir())
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 8192, resource.RLIM_INFINITY))

    def make_room() -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, none)

    yield sqlite_pair.far, fill, make_room
    make_room()


@pytest.mark.parametrize("disk", ["small_disk", "limited_file"])
def test_a_full_disk_refuses_uploads_whole_and_space_heals_it_without_a_restart(
    disk: str, request: pytest.FixtureRequest, assert_unavailable: Any
) -> None:
    server, fill, make_room = request.getfixturevalue(disk)
    small, large = server.profile(7), server.profile(8, labels=500)
    version = server.put("before", small).json()["version"]
    server.classify("before")
    acknowledged = server.versions()
    fill()
    for number in range(400):
        answer = server.put(f"disk{number % 40}", server.profile(1000 + number, labels=500))
        if answer.status_code == 503:
            break
        acknowledged[f"disk{number % 40}"] = answer.json()["version"]
    assert_unavailable(answer, "store_unavailable")
    assert "full" in answer.text or "disk I/O error" in answer.text
    assert_unavailable(server.put("before", large), "store_unavailable")
    assert server.versions() == acknowledged
    assert server.client.get("/v1/profiles/before").json()["version"] == version
    answer = server.classify("before")
    assert answer.json()["profile_version"] == version
    assert "x-profile-unverified" not in answer.headers
    assert server.client.get("/ready").status_code == 200
    make_room()
    answer = server.put("before", large)
    assert answer.status_code == 200
    assert server.versions() == acknowledged | {"before": answer.json()["version"]}
    assert server.classify("before").json()["profile_version"] == answer.json()["version"]
    assert "Traceback" not in server.log.read_text()
