"""Every route that there is, asked by everybody: who may, and that no tenant ever sees another.

The routes come from the table of access, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

import pytest

from xpeft_profiles import MemoryStore, Profile, ProfileKey, write_profile_file
from xpeft_profiles.listing import encode_cursor
from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_ring import KeyRing
from xpeft_server.api.access.table import ACCESS, CANCEL, JOB, MODEL, PROFILE, PUBLIC, TUNE
from xpeft_server.engine.errors import ProfileNotFound
from xpeft_server.engine.requests import Finished, Piece, Started

ROUTES = [(method, template) for template, methods in ACCESS.items() for method in methods]
FILE = {"content-type": "application/octet-stream"}
JSON = {"content-type": "application/json"}
EXAMPLES = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
# What each route that takes a body is sent; ``NAME`` stands for a profile's name.
BODIES = {
    "/v1/classify": {"profile": "NAME", "input": "a"},
    "/v1/generate": {"profile": "NAME", "prompt": "a"},
    "/v1/completions": {"model": "NAME", "prompt": "a"},
    "/v1/chat/completions": {"model": "NAME", "messages": [{"role": "user", "content": "a"}]},
    TUNE: {"examples": EXAMPLES},
}
WITHOUT_BODY = {CANCEL}
WITH_NAME = {template for template in ACCESS if "{name}" in template} | BODIES.keys()


def profile_of(owner: str, seed: int) -> Profile:
    from numpy import eye, float16, full, uint8

    return Profile(
        bank="sha256:" + "ab" * 32,
        mask_a=eye(2, 16, seed, dtype=uint8),
        mask_b=eye(2, 16, seed, dtype=uint8),
        head_weight=full((2, 8), seed, float16),
        labels=(f"{owner}-label", "b"),
        description=f"{owner}-description",
    )


class Sent(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    content: bytes


def request_to(method: str, template: str, *, name: str = "same", job: str = "job_0", owner: str = "other") -> Sent:
    path = template.replace("{name}", name).replace("{id}", job)
    if (method, template) == ("PUT", PROFILE):
        return Sent(method, path, FILE, write_profile_file(profile_of(owner, 9)))
    if method == "POST" and template in BODIES:
        return Sent(method, path, JSON, json.dumps(BODIES[template]).replace("NAME", name).encode())
    return Sent(method, path, {}, b"")


async def ask(client, sent: Sent, **headers: str):
    return await client.request(sent.method, sent.path, headers=sent.headers | headers, content=sent.content)


def shown(answer) -> str:
    """All that an answer says, but for what differs between any two."""
    text = f"{answer.status_code} {sorted(answer.headers.items())} {answer.text}"
    return re.sub(r"'x-(request-id|[a-z]+-time)', '[^']*'", "", text)


class CountedStore(MemoryStore):
    """Tells which of its methods were called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    async def get(self, key):
        self.calls.append("get")
        return await super().get(key)

    async def get_many(self, keys):
        self.calls.append(f"get_many {len(keys)}")
        return await super().get_many(keys)

    async def versions(self, keys):
        self.calls.append(f"versions {len(keys)}")
        return await super().versions(keys)

    async def put(self, *arguments, **options):
        self.calls.append("put")
        return await super().put(*arguments, **options)

    async def delete(self, *arguments, **options):
        self.calls.append("delete")
        return await super().delete(*arguments, **options)

    async def list(self, *arguments, **options):
        self.calls.append("list")
        return await super().list(*arguments, **options)


@pytest.fixture
async def store():
    store = CountedStore()
    await store.open()
    return store


@pytest.fixture
def engine(engine, store):
    """Answers for profiles that the store has."""
    engine.info = dataclasses.replace(engine.info, generates=True, model_type="llama")
    answer = engine.classify

    async def check(profile):
        if profile is not None and await store.get(profile) is None:
            raise ProfileNotFound(f"there is no profile {profile.name!r}", param="profile")

    async def classify(request):
        await check(request.profile)
        return await answer(request)

    async def generate(request):
        await check(request.profile)
        for news in (Started("sha256:" + "cd" * 32, 0.001), Piece("a"), Finished("stop", 3, 1, 0.002)):
            yield news

    engine.classify, engine.generate = classify, generate
    return engine


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys.json"
    owners = {
        "acme-admin": ("acme", "admin"),
        "acme-expired": ("acme", "admin"),
        "other-admin": ("other", "admin"),
        "other-infer": ("other", "infer"),
        "ops": (None, "operator"),
    }
    entries = [
        {
            "id": secret,
            "tenant": tenant,
            "role": role,
            "sha256": sha256(secret.encode()).hexdigest(),
            "expires": "2020-01-01T00:00:00Z" if "expired" in secret else None,
        }
        for secret, (tenant, role) in owners.items()
    ]
    path.write_text(json.dumps({"keys": entries}))
    return path


@pytest.fixture
def keys(key_file):
    return KeyRing(key_file)


class World(NamedTuple):
    """Two tenants: each has a profile ``same`` and one of its own, and a job for each."""

    versions: dict[tuple[str, str], str]
    jobs: dict[str, str]

    def marks(self, tenant: str) -> set[str]:
        """What only this tenant may see."""
        versions = {version for (owner, _), version in self.versions.items() if owner == tenant}
        words = {f"{tenant}-label", f"{tenant}-description", f"{tenant}-only", self.jobs[tenant]}
        return versions | words | {version.removeprefix("sha256:") for version in versions}


@pytest.fixture
async def world(keyed, store):
    versions, jobs = {}, {}
    for seed, tenant in enumerate(("acme", "other"), 1):
        for number, name in enumerate(("same", f"{tenant}-only")):
            profile = profile_of(tenant, seed + 4 * number)
            outcome = await store.put(ProfileKey(tenant, name), profile)
            versions[tenant, name] = outcome.version
        answer = await ask(keyed(f"{tenant}-admin"), request_to("POST", TUNE, name=f"{tenant}-only"))
        jobs[tenant] = answer.json()["id"]
    return World(versions, jobs)


def test_every_route_that_takes_a_body_is_sent_one():
    writes = {template for method, template in ROUTES if method == "POST"}
    assert writes == BODIES.keys() | WITHOUT_BODY
    assert {method for method, _ in ROUTES} == {"GET", "HEAD", "POST", "PUT", "DELETE"}


@pytest.mark.parametrize(("method", "template"), ROUTES)
async def test_every_role_may_what_the_table_says_and_nobody_else(keyed, world, method, template):
    sent = request_to(method, template)
    for secret in (None, "made-up", "acme-expired"):
        answer = await ask(keyed(secret), sent)
        assert (answer.status_code == 401) is (template not in PUBLIC)
        assert not world.marks("acme") & set(answer.text.split('"'))
    for secret, role in (("other-infer", Role.INFER), ("other-admin", Role.ADMIN), ("ops", Role.OPERATOR)):
        status = (await ask(keyed(secret), sent)).status_code
        if template in PUBLIC or role in ACCESS[template][method]:
            assert status not in (401, 403, 405, 500)
        else:
            assert status == 403


def asked_by_another(world: World, method: str, template: str) -> Iterator[tuple[Sent, dict[str, str]]]:
    """Requests of the tenant ``other`` that are after what is ``acme``'s."""
    theirs = world.versions["acme", "same"]
    queries = [""]
    if template in ("/v1/profiles", "/v1/jobs"):
        after = world.jobs["acme"] if template == "/v1/jobs" else "acme-only"
        queries += ["?limit=1", f"?cursor={encode_cursor(after)}", f"?cursor={encode_cursor('a')}", "?cursor=acme-only"]
    if template == "/v1/profiles":
        queries += ["?prefix=acme", "?prefix=s", "?prefix=", "?tenant=acme"]
    if template == "/v1/models":
        queries += ["?after=acme-only", "?after=same", "?after=a&limit=1", "?tenant=acme"]
    for name in ("same", "acme-only", "absent"):
        for query in queries:
            sent = request_to(method, template, name=name, job=world.jobs["acme"])
            for headers in (
                {},
                {"accept": "application/octet-stream"},
                {"accept": "text/event-stream"},
                {"if-match": f'"{theirs}"'},
                {"if-none-match": f'"{theirs}"'},
                {"if-none-match": "*"},
                {"x-tenant": "acme", "x-forwarded-user": "acme-admin", "cookie": "tenant=acme"},
            ):
                yield sent._replace(path=sent.path + query), headers


@pytest.mark.parametrize(("method", "template"), ROUTES)
async def test_no_answer_shows_another_tenant(keyed, world, store, method, template):
    before = {key: await store.get(key) for key in (ProfileKey("acme", name) for name in ("same", "acme-only"))}
    acme = keyed("acme-admin")
    job_before = (await acme.get(f"/v1/jobs/{world.jobs['acme']}")).json()
    for secret in ("other-admin", "other-infer"):
        for sent, headers in asked_by_another(world, method, template):
            answer = await ask(keyed(secret), sent, **headers)
            said = shown(answer)
            given = f"{sent.path} {headers} {sent.content!r}"
            leaked = {mark for mark in world.marks("acme") if mark in said and mark not in given}
            assert not leaked, (sent.path, headers)
            assert answer.status_code != 500
            if template in (JOB, CANCEL):
                assert answer.status_code in (403, 404)
            # Nothing of acme's can be had by its name, unless it was made by this tenant itself just before.
            if "acme-only" in sent.path and template in (PROFILE, MODEL) and method in ("GET", "HEAD"):
                assert answer.status_code == 404
            if headers.get("if-match") and sent.method in ("PUT", "DELETE"):
                assert answer.status_code in (403, 404, 412)
            # A version of acme's matches nothing of this tenant's.
            if headers.get("if-none-match", "*") != "*":
                assert answer.status_code != 304
    assert before == {key: await store.get(key) for key in before}
    assert (await acme.get(f"/v1/jobs/{world.jobs['acme']}")).json() == job_before


async def test_pages_of_each_tenant_hold_its_own_and_nothing_else(keyed, world):
    for tenant in ("acme", "other"):
        client = keyed(f"{tenant}-admin")
        names = sorted(["same", f"{tenant}-only"])
        assert [line["name"] for line in (await client.get("/v1/profiles")).json()["data"]] == names
        models = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == ["base", *names]
        assert {model["owned_by"] for model in models} == {"xpeft", tenant}
        assert [job["id"] for job in (await client.get("/v1/jobs")).json()["data"]] == [world.jobs[tenant]]


async def test_a_cursor_of_one_tenant_is_only_a_place_in_the_order_of_another(keyed, world):
    cursor = (await keyed("acme-admin").get("/v1/profiles?limit=1")).json()["next_cursor"]
    page = (await keyed("other-admin").get("/v1/profiles", params={"cursor": cursor})).json()
    assert [line["name"] for line in page["data"]] == ["other-only", "same"]


# To put or to tune a profile makes it: any name will do.
MAKE = {("PUT", PROFILE), ("POST", TUNE)}


@pytest.mark.parametrize(
    ("method", "template"), [route for route in ROUTES if route[1] in WITH_NAME and route not in MAKE]
)
async def test_a_profile_of_another_tenant_takes_the_same_way_as_one_that_is_not_there(
    keyed, world, store, method, template
):
    """The clock cannot tell them apart either: the steps are the same."""
    seen = []
    for name in ("acme-only", "acme-none"):
        store.calls.clear()
        answer = await ask(keyed("other-admin"), request_to(method, template, name=name))
        assert answer.status_code == 404
        seen.append((list(store.calls), shown(answer).replace(name, "NAME")))
    assert seen[0] == seen[1]
    assert seen[0][0], "the store was asked"


@pytest.mark.parametrize(("method", "template"), [route for route in ROUTES if route[1] in (JOB, CANCEL)])
async def test_a_job_of_another_tenant_takes_the_same_way_as_one_that_is_not_there(
    keyed, world, store, monkeypatch, method, template
):
    asked = []
    get = store.jobs.get

    async def counted(key):
        asked.append("get")
        return await get(key)

    monkeypatch.setattr(store.jobs, "get", counted)
    theirs = world.jobs["acme"]
    absent = theirs[:-4] + ("0000" if theirs[-4:] != "0000" else "1111")
    seen = []
    for job in (theirs, absent):
        asked.clear()
        answer = await ask(keyed("other-admin"), request_to(method, template, job=job))
        assert answer.status_code == 404
        seen.append((list(asked), shown(answer).replace(job, "JOB")))
    assert seen[0] == seen[1]
    assert seen[0][0], "the store was asked"


METHODS = ("HEAD", "GET", "POST", "OPTIONS", "TRACE", "PATCH", "PUT", "DELETE", "PROPFIND", "MADEUP")


@pytest.mark.parametrize("template", ACCESS)
async def test_a_method_that_is_not_in_the_table_is_never_served(keyed, world, template):
    nobody, *others = (keyed(secret) for secret in (None, "other-admin", "ops"))
    for method in METHODS:
        if method in ACCESS[template]:
            continue
        sent = request_to("GET", template)._replace(method=method)
        assert (await ask(nobody, sent)).status_code == (405 if template in PUBLIC else 401), method
        for client in others:
            answer = await ask(client, sent)
            assert answer.status_code == 405, method
            assert answer.headers["allow"] == ", ".join(sorted(ACCESS[template]))


VARIANTS = [
    lambda path: path + "/",
    lambda path: path + "//",
    lambda path: "/" + path,
    lambda path: path.replace("/", "//"),
    lambda path: "/." + path,
    lambda path: "/x/.." + path,
    lambda path: "/health/.." + path,
    lambda path: "/health/%2e%2e" + path,
    lambda path: "/ready%2f.." + path,
    lambda path: path + "/.",
    lambda path: path + "/..",
    lambda path: path + "%00",
    lambda path: path + "%0a",
    lambda path: path + "%20",
    lambda path: path + "%23",
    lambda path: path + "%3f",
    lambda path: path + ";x=1",
    lambda path: path + "%2f",
    lambda path: path.upper(),
    lambda path: path.replace("/", "%2f"),
    lambda path: "/" + path[1:].replace("/", "%5c"),
    lambda path: path.replace("v1", "v1%2f..%2fv1"),
    lambda path: path.replace("e", "%65"),
    lambda path: path.replace("e", "%2565"),
    lambda path: path.replace("e", "%c3%a9"),
    lambda path: "http://other.example" + path,
    lambda path: path + "?tenant=acme&key=acme-admin&access_token=acme-admin",
    lambda path: path + "#x",
]


@pytest.mark.parametrize("template", ACCESS)
async def test_a_variant_of_a_path_opens_nothing_that_the_path_does_not(port, world, template):
    """Over a socket, as it is written: no client puts it right before."""

    async def status_of(path: str, secret: str | None) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        key = f"Authorization: Bearer {secret}\r\n" if secret else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{key}Connection: close\r\n\r\n".encode())
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        assert "acme-label" not in answer.decode()
        return int(answer.split()[1])

    path = template.replace("{name}", "same").replace("{id}", world.jobs["other"])
    roles = ACCESS[template].get("GET", frozenset())
    for variant in VARIANTS:
        changed = variant(path)
        assert await status_of(changed, None) != 200 or template in PUBLIC
        assert await status_of(changed, "acme-expired") != 200 or template in PUBLIC
        for secret, role in (("other-infer", Role.INFER), ("ops", Role.OPERATOR)):
            if role not in roles:
                assert await status_of(changed, secret) != 200, changed
    assert await status_of(path, "other-infer") == (200 if Role.INFER in roles else 405 if not roles else 403)


async def test_only_operators_see_the_names_of_tenants_in_the_metrics(keyed, world):
    await ask(keyed("acme-admin"), request_to("POST", "/v1/classify", name="acme-only"))
    text = (await keyed("ops").get("/metrics")).text
    assert 'tenant="acme"' in text
    for mark in world.marks("acme") - {"acme-only"}:
        assert mark not in text
    for secret in ("other-admin", "acme-admin", None):
        assert "acme" not in (await keyed(secret).get("/metrics")).text
