"""POST /v1/completions with ``echo``: the prompt stands before the answer, and its logprobs before the answer's."""

from __future__ import annotations

from itertools import chain

import pytest

from xpeft_server.engine.requests import ChosenToken, Echo, Finished, LikelyToken, Piece, Started

URL = "/v1/completions"
VERSION = "sha256:" + "cd" * 32
LINES = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def token(spelled, logprob=-1.0, *, likeliest=(), special=False):
    text = spelled.decode(errors="replace")
    return ChosenToken(LikelyToken(5, text, spelled, logprob), tuple(likeliest), special)


def script_with(script, *parts):
    script.lines[:] = [Started(VERSION, 0.001, prompt_tokens=4), *parts, Finished("stop", 4, 1, 0.002)]


async def choice_of(client, events, *, stream, **fields):
    """The choice, a stream's put together: its text, and the lists of its logprobs."""
    answer = await client.post(URL, json={"model": "p", "prompt": "x", "stream": stream, **fields})
    assert answer.status_code == 200, answer.text
    choices = [each["choices"][0] for each in (events(answer) if stream else [answer.json()])]
    told = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    lists = {name: list(chain.from_iterable(each[name] for each in told)) for name in LINES} if told else None
    return "".join(choice["text"] for choice in choices), lists


@pytest.mark.parametrize("stream", [False, True])
async def test_the_text_begins_with_the_prompt(client, script, events, stream):
    script_with(script, Echo("Say"), Echo(""), Piece(" it"))
    assert await choice_of(client, events, stream=stream, echo=True) == ("Say it", None)
    (asked,) = script.asked
    assert (asked.echo, asked.max_new_tokens, asked.sampling.logprobs) == (True, 16, None)


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_begin_with_those_of_the_prompt_and_its_first_token_has_none(client, script, events, stream):
    best = LikelyToken(6, " me", b" me", -0.5)
    script_with(
        script,
        Echo("Say it", (token(b"<s>", None, special=True), token(b"Say", -2.0, likeliest=[best]))),
        Echo("", (token(b" it", -0.5),)),
        Piece(".", (token(b".", -0.25),)),
    )
    text, lists = await choice_of(client, events, stream=stream, echo=True, logprobs=1)
    assert text == "Say it."
    assert lists == {
        "tokens": ["<s>", "Say", " it", "."],
        "token_logprobs": [None, -2.0, -0.5, -0.25],
        "top_logprobs": [None, {" me": -0.5, "Say": -2.0}, {" it": -0.5}, {".": -0.25}],
        "text_offset": [0, 0, 3, 6],
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "spelled", "answer", "offsets"),
    [
        ("Say it", [b" Say", b" it"], [b"."], [0, 3, 6]),
        (" Say it", [b" Say", b" it"], [b"."], [0, 4, 7]),
        ("Say", [b" ", b"S", b"ay"], [b"."], [0, 0, 1, 3]),
        ("\u212b!", ["Å".encode(), b"!"], [b"."], [0, 1, 2]),
        ("a stop", [b"a", b" stop"], [b" st", b"op"], [0, 1, 6, 9]),
        ("f", [b"f", b"\xc3"], [b"\xbcr"], [0, 1, 1]),
    ],
    ids=["a space of the tokenizer's", "one of its own", "a token of its own", "another character", "a stop", "half"],
)
async def test_offsets_count_the_prompts_characters_and_then_the_answers(
    client, script, events, stream, prompt, spelled, answer, offsets
):
    echo = Echo(prompt, tuple(token(each) for each in spelled))
    script_with(script, echo, Piece("", tuple(token(each) for each in answer)))
    _, lists = await choice_of(client, events, stream=stream, echo=True, logprobs=0, stop="stopped")
    assert lists["text_offset"] == offsets


@pytest.mark.parametrize("stream", [False, True])
async def test_the_prompt_alone_may_be_asked_for(client, script, events, stream):
    script_with(script, Echo("Say", (token(b"Say", None),)))
    text, lists = await choice_of(client, events, stream=stream, echo=True, max_tokens=0, logprobs=0)
    assert text == "Say"
    assert lists == {"tokens": ["Say"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
    assert script.asked[0].max_new_tokens == 0


@pytest.mark.parametrize("echo", [None, False, "left out"])
async def test_an_answer_without_tokens_is_for_echo_alone(client, script, echo):
    fields = {} if echo == "left out" else {"echo": echo}
    answer = await client.post(URL, json={"model": "p", "prompt": "x", "max_tokens": 0, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, "max_tokens")
    assert error["message"] == "max_tokens: must be at least 1 without echo, not 0"
    assert script.asked == []


@pytest.mark.parametrize("value", [1, "true", []])
async def test_echo_is_true_or_false(client, value):
    answer = await client.post(URL, json={"model": "p", "prompt": "x", "echo": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "echo")
