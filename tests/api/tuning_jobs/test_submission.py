"""What is taken to be tuned, and what is refused."""

from __future__ import annotations

import time
from dataclasses import fields

import pytest

from xpeft_profiles import Match, ProfileKey
from xpeft_server.api.tuning.wire import TuningSettingsBody
from xpeft_tuning.settings import TuningSettings

EXAMPLES = [
    {"text": "My bag is lost", "label": "baggage"},
    {"text": "Money back", "text_pair": "please", "label": "refund"},
]
BODY = {"examples": EXAMPLES}
TUNE = "/v1/profiles/desk/tune"
FILE = {"content-type": "application/octet-stream"}


async def test_a_job_is_accepted_worked_on_and_its_profile_goes_live(
    client, worker, profile_file, store, submit, job_of, becomes
):
    began = int(time.time())
    answer = await submit(client)
    queued = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{queued['id']}"
    assert began <= queued["created"] <= time.time()
    assert queued == {
        "id": queued["id"],
        "object": "tuning.job",
        "profile": "desk",
        "status": "queued",
        "created": queued["created"],
        "started": None,
        "finished": None,
        "progress": None,
        "result": None,
        "error": None,
    }
    await worker.begins()
    running = await job_of(client, queued)
    assert running == {**queued, "status": "running", "started": running["started"]}
    worker.progress({"epoch": 1, "epochs": 15, "step": 2, "steps": 5, "loss": 0.5})
    assert (await job_of(client, queued))["progress"] == {"epoch": 1, "epochs": 15, "step": 2, "steps": 5, "loss": 0.5}
    worker.ends(profile_file(7))
    done = await becomes(client, queued, "succeeded")
    profile = (await client.get("/v1/profiles/desk")).json()
    assert done["result"]["profile_version"] == profile["version"]
    assert done["result"]["accuracy"]["held_out"] == 1.0
    assert queued["created"] <= done["started"] <= done["finished"]
    assert done["error"] is None
    assert await store.versions([ProfileKey("default", "desk")]) == [profile["version"]]


async def test_what_was_sent_reaches_the_worker_and_nothing_else(client, worker, tune):
    settings = {"epochs": 3, "k": 4, "lr_masks": 1, "shared_head": "mood", "description": "für alle"}
    rows = [{**row, "split": "train"} for row in EXAMPLES]
    await tune(client, examples=rows, labels=["refund", "baggage"], settings=settings)
    await worker.begins()
    (request,) = worker.seen
    assert request.profile == ("default", "desk")
    assert [tuple(row) for row in request.examples] == [
        ("My bag is lost", "baggage", None, "train"),
        ("Money back", "refund", "please", "train"),
    ]
    assert request.labels == ("refund", "baggage")
    assert request.settings == settings
    assert request.match == Match()


def test_settings_are_those_of_the_command_line_but_for_tokens_on_the_device():
    assert {*TuningSettingsBody.model_fields} == {each.name for each in fields(TuningSettings)} - {"batch_tokens"}
    given = {name: field.default for name, field in TuningSettingsBody.model_fields.items()}
    assert TuningSettings(**given) == TuningSettings()


async def test_labels_may_be_numbers(client, worker, tune):
    await tune(client, examples=[{"text": "a", "label": 3}, {"text": "b", "label": -0.5}], labels=["stars"])
    await worker.begins()
    assert [row.label for row in worker.seen[0].examples] == [3.0, -0.5]
    assert all(isinstance(row.label, float) for row in worker.seen[0].examples)


async def test_examples_may_be_completions(client, worker, tune):
    prompts = [
        {"prompt": "Dear", "completion": " guest", "split": "train"},
        {"prompt": "Hi", "completion": "!", "split": "dev"},
    ]
    await tune(client, examples=prompts, settings={"epochs": 2})
    await worker.begins()
    (request,) = worker.seen
    assert request.completions
    assert [tuple(row) for row in request.examples] == [("Dear", " guest", None, "train"), ("Hi", "!", None, "dev")]
    assert request.labels is None


def rows(**last):
    return {"examples": [*EXAMPLES, {"text": "c", "label": "refund", **last}]}


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({}, "examples", "missing"),
        ({"examples": []}, "examples", "at least 1"),
        ({"examples": "x"}, "examples", "array"),
        ({**BODY, "rows": 1}, "rows", "no field"),
        (rows(colour="red"), "examples[2].colour", "no field"),
        (rows(text=""), "examples[2].text", "at least 1"),
        (rows(text=3), "examples[2].text", "3"),
        (rows(text_pair=""), "examples[2].text_pair", "at least 1"),
        (rows(label=""), "examples[2].label", "at least 1"),
        (rows(label=None), "examples[2].label", "a text or a number"),
        (rows(label=True), "examples[2].label", "a text or a number"),
        (rows(label=["a"]), "examples[2].label", "a text or a number"),
        (rows(label=2.5), "examples[2].label", "2.5"),
        ({"examples": [{"text": "a", "label": 1e9}]}, "examples[0].label", "1000000000.0"),
        (rows(split="eval"), "examples[2].split", "eval"),
        (rows(split="train"), "examples[2].split", "either every row has one"),
        (rows(prompt="a", completion="b"), "examples[2].text", "no field"),
        ({"examples": [*EXAMPLES, {"prompt": "a", "completion": "b"}]}, "examples[2]", "has a completion, but"),
        ({"examples": [{"prompt": "a", "completion": "b"}, *EXAMPLES]}, "examples[1]", "has a label, but"),
        ({"examples": [{"prompt": "a"}]}, "examples[0].completion", "missing"),
        ({"examples": [{"prompt": "a", "completion": ""}]}, "examples[0].completion", "at least 1"),
        ({"examples": ["a"]}, "examples[0]", '{"prompt", "completion"}'),
        ({"examples": EXAMPLES * 5}, "examples", "10 examples, more than the 8"),
        ({**BODY, "labels": []}, "labels", "at least 1"),
        ({**BODY, "labels": ["refund", ""]}, "labels[1]", "at least 1"),
        ({**BODY, "labels": ["refund", "refund"]}, "labels", "'refund' 2 times"),
        ({**BODY, "labels": ["refund"]}, "examples[0].label", "'baggage'"),
        ({**BODY, "settings": []}, "settings", "[]"),
        ({**BODY, "settings": {"batch_tokens": 5}}, "settings.batch_tokens", "no field"),
        ({**BODY, "settings": {"epochs": 0}}, "settings.epochs", "not 0"),
        ({**BODY, "settings": {"epochs": 1001}}, "settings.epochs", "not 1001"),
        ({**BODY, "settings": {"epochs": None}}, "settings.epochs", "null"),
        ({**BODY, "settings": {"epochs": 2.5}}, "settings.epochs", "2.5"),
        ({**BODY, "settings": {"kind": "firm"}}, "settings.kind", "firm"),
        ({**BODY, "settings": {"k": 0}}, "settings.k", "not 0"),
        ({**BODY, "settings": {"lr_masks": -1}}, "settings.lr_masks", "-1"),
        ({**BODY, "settings": {"temperature": 0}}, "settings.temperature", "not 0"),
        ({**BODY, "settings": {"held_out": 1}}, "settings.held_out", "not 1"),
        ({**BODY, "settings": {"stop_on": "luck"}}, "settings.stop_on", "luck"),
        ({**BODY, "settings": {"shared_head": ""}}, "settings.shared_head", "at least 1"),
        ({**BODY, "settings": {"seed": 1 << 63}}, "settings.seed", ""),
        ({**BODY, "settings": {"description": "x" * 1025}}, "settings.description", "has 1025 bytes, at most 1024"),
        ({**BODY, "settings": {"description": "ü" * 513}}, "settings.description", "has 1026 bytes, at most 1024"),
    ],
)
async def test_what_cannot_be_tuned_is_422_and_names_field_and_value(client, worker, body, param, word):
    answer = await client.post(TUNE, json=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert word in error["message"]
    assert (await client.get("/v1/jobs")).json()["data"] == []
    assert worker.seen == []


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "invalid_json"),
        ({"content": b"{}", "headers": {"content-type": "text/csv"}}, 415, "unsupported_media_type"),
        ({"json": {"examples": [{"text": "a" * 5000, "label": "b"}]}}, 413, "body_too_large"),
        ({"json": BODY, "headers": {"if-match": "sha256:unquoted"}}, 400, "invalid_header"),
    ],
)
async def test_a_body_that_is_none_is_refused(client, send, status, code):
    answer = await client.post(TUNE, **send)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("name", "code"), [("base", "reserved_name"), ("a b", "invalid_name"), ("x/y", "invalid_name")]
)
async def test_a_profile_that_cannot_be_stored_is_not_tuned(client, name, code, submit):
    answer = await submit(client, name)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert answer.json()["error"]["param"] == "name"


async def test_a_profile_may_be_called_tune(client, profile_file):
    assert (await client.put("/v1/profiles/tune", content=profile_file(1), headers=FILE)).status_code == 201
    assert (await client.get("/v1/profiles/tune")).json()["name"] == "tune"
    assert (await client.get("/v1/profiles/tune/tune")).status_code == 405


class TestASetting:
    @pytest.fixture
    def settings(self, settings):
        return settings.model_copy(update={"tuning_jobs_per_tenant": 0})

    async def test_of_no_jobs_switches_tuning_off(self, client, submit):
        answer = await submit(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "tuning_off")
        assert (await client.get("/v1/jobs")).json()["data"] == []


async def test_an_example_of_the_document_is_accepted(client):
    document = (await client.get("/openapi.json")).json()
    for example in document["components"]["schemas"]["TuneBody"]["examples"]:
        assert (await client.post(TUNE, json=example)).status_code == 202
    content = document["paths"]["/v1/jobs/{id}"]["get"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}
