"""The server against its own OpenAPI document: requests that this allows, and requests that it does not."""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from xpeft_server.api.access.table import ACCESS, CANCEL, JOB, PROFILE, PUBLIC

load_all_checks()

EXAMPLES = 300 if os.environ.get("NIGHTLY") == "1" else 8
DOCUMENT = "/openapi.json"
# They take nothing, or any text.
FORBID_NOTHING = ("/health", "/ready", "/info", "/metrics", JOB, CANCEL)
OPERATIONS = [
    (path, method) for path, methods in ACCESS.items() for method in methods if method != "HEAD" and path != DOCUMENT
]
ALLOWED = [(path, method, GenerationMode.POSITIVE) for path, method in OPERATIONS]
FORBIDDEN = [(path, method, GenerationMode.NEGATIVE) for path, method in OPERATIONS if path not in FORBID_NOTHING]
# The document cannot say how many tokens a text may have, or what a profile file is: not all that it allows is taken.
# Who may pass is asked below.
NOT_ASKED = {"positive_data_acceptance", "ignored_auth"}
ASKED = [check for check in CHECKS.get_all() if check.__name__ not in NOT_ASKED]

some = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def documented(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A server and its document, without the keys: they are no part of what is made up here."""
    server = request.getfixturevalue(request.param)
    document = server.client.get(DOCUMENT).json()
    for methods in document["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)
    return server, schemathesis.openapi.from_dict(document)


@pytest.mark.parametrize(("path", "method", "mode"), ALLOWED + FORBIDDEN)
def test_every_answer_is_one_that_the_document_announces(
    documented: tuple[Any, Any], path: str, method: str, mode: GenerationMode
) -> None:
    server, document = documented
    headers = {"authorization": "Bearer ops" if path == "/metrics" else "Bearer acme-admin"}

    @some
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            name_what_is_there(case)
        case.call_and_validate(base_url=str(server.client.base_url), headers=headers, checks=ASKED)

    ask()


def name_what_is_there(case: Any) -> None:
    """Made-up names would all be a 404."""
    if isinstance(case.body, dict) and "examples" not in case.body:
        case.body.pop("profile", None)
        case.body["model"] = "mine"
    if case.path == PROFILE and case.method == "GET":
        case.path_parameters["name"] = "mine"


@pytest.mark.parametrize(("path", "method"), [each for each in OPERATIONS if each[0] not in PUBLIC])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer xp_nobody"}])
def test_without_a_key_the_answer_is_the_announced_401(
    encoder: Any, path: str, method: str, headers: dict[str, str]
) -> None:
    document = schemathesis.openapi.from_dict(encoder.client.get(DOCUMENT).json())

    @settings(some, max_examples=2)
    @given(case=document[path][method].as_strategy())
    def ask(case: Any) -> None:
        case.headers.pop("Authorization", None)
        answer = case.call(base_url=str(encoder.client.base_url), headers=headers)
        assert answer.status_code == 401
        case.validate_response(answer, checks=ASKED)

    ask()
