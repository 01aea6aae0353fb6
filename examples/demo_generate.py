"""Two reviewers, one model that writes: tune a voice for each, serve both, and let them review the same films.

`make demo-generate PLM=PATH_OR_HUB_ID` runs it and leaves the server running until Ctrl-C; with ONCE=1 it ends by
itself. Everything that it writes is in demo-generate-data/. It ends with exit code 1 if anything is not as it should
be.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from demo_server import (
    XPEFT,
    Tenant,
    call,
    console,
    fail,
    make_tenants,
    run_to_the_end,
    running_server,
    say,
    scrape,
    show_metrics,
    stay,
    step,
    tuning_bar,
    upload,
)
from rich.table import Table
from rich.text import Text

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.file import write_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import Plm, load_plm
from xpeft_tuning.dataset import Dataset, read_dataset
from xpeft_tuning.mask_tuner import TunedProfile, tune_profile
from xpeft_tuning.settings import TuningSettings

VOICES = Path(__file__).resolve().parent / "voices"
DATA = VOICES.parent.parent / "demo-generate-data"
NAMES = ("fan", "grump")
BANK = "random:N=100,R=16,seed=0,std=0.1"
# With the defaults, which are for labels, 32 reviews leave a voice fainter than this.
TUNING = TuningSettings(k=10, batch_rows=4, lr_norm=0.1)
NEW_TOKENS = 40
GREEDY = {"temperature": 0}
DRAWN = {"temperature": 0.8, "top_p": 0.9, "seed": 6}


@dataclass(frozen=True)
class Writer:
    """Asks for texts, greedily unless told otherwise, and keeps the ``usage`` of every answer."""

    client: httpx.Client
    usages: list[dict[str, int]] = field(default_factory=list)

    def write(self, tenant: Tenant, profile: str, prompt: str, sampling: Mapping[str, float] = GREEDY) -> str:
        document = {"profile": profile, "prompt": prompt, "max_new_tokens": NEW_TOKENS, **sampling}
        answer = call(self.client, "POST", "/v1/generate", tenant.key, document=document).json()
        self.usages.append(answer["usage"])
        return str(answer["text"])

    def stream(self, tenant: Tenant, prompt: str) -> Iterator[str]:
        """The tenant's profile's answer in pieces, as they come."""
        document = {"profile": tenant.profile, "prompt": prompt, "max_new_tokens": NEW_TOKENS, "stream": True}
        headers, event, line = {"Authorization": f"Bearer {tenant.key}"}, dict[str, Any](), ""
        with self.client.stream("POST", "/v1/generate", headers=headers, json=document) as answer:
            for line in filter(None, answer.iter_lines()):
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    yield str(event.get("text", ""))
        if line != "data: [DONE]":
            fail(f"the stream was answered with {answer.status_code} and ended with {line!r}, not with [DONE]")
        self.usages.append(event["usage"])

    def chat(self, tenant: Tenant, message: str) -> dict[str, Any]:
        """The whole answer, which may be that the model has no template for chats."""
        messages = [{"role": "user", "content": message}]
        document = {
            "model": tenant.profile,
            "messages": messages,
            "max_completion_tokens": NEW_TOKENS,
            "temperature": 0,
        }
        answer = call(self.client, "POST", "/v1/chat/completions", tenant.key, document=document, expect=(200, 400))
        found = dict(answer.json())
        if answer.status_code == httpx.codes.OK:
            self.usages.append(found["usage"])
        return found


def demo(
    plm: Annotated[str, typer.Option(help="Language model that writes: a path or a hub id.")],
    once: Annotated[bool, typer.Option("--once", help="Stop the server at the end instead of leaving it on.")] = False,
) -> None:
    """Tune two voices, serve them, and let both go on with the same texts."""
    started = time.monotonic()
    run_to_the_end(lambda: run(plm, once=once, started=started))


def run(plm_name: str, *, once: bool, started: float) -> None:
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    step("1", "One frozen language model that writes, one bank of random adapters, shared by everybody")
    plm = load_plm(plm_name)
    if plm.vocabulary_head is None:
        fail(f"{plm.name} ({plm.facts.model_type}) does not write text: this demo needs a causal language model")
    bank = open_bank(BANK, plm.facts)
    write_bank_file(bank, DATA / "bank.safetensors")
    say(f"{plm.name}: {bank.blocks} blocks of width {bank.hidden}; nothing in it will change")
    size = f"{bank.nbytes / 1e6:.0f} MB"
    say(f"demo-generate-data/bank.safetensors: {bank.adapters} adapters for each block, {size}, once")
    step("2", "A profile for each voice, tuned on reviews of the same films: which adapters it chooses")
    voices = {name: read_dataset(VOICES / f"{name}.jsonl") for name in NAMES}
    tuned = {name: tune_voice(plm, bank, name, dataset) for name, dataset in voices.items()}
    tenants, operator_key = make_tenants(tuned, profile="voice", folder=DATA)
    show_tuned(tenants)
    step("3", "One server for both: SQLite, a key for each tenant")
    # Without a GPU float32 is the default; on one, bfloat16 is, in which two tokens are now and then equally likely.
    with running_server(DATA, plm=plm_name, dtype="float32") as server:
        say(f"xpeft serve listens at {server.url}; its log is demo-generate-data/server.log")
        with httpx.Client(base_url=server.url, timeout=120) as client:
            held_out = [row.text for row in voices[NAMES[0]].examples if row.split == "test"]
            show_server(tenants, operator_key, client, held_out)
        say(f"All of this took {time.monotonic() - started:.0f} seconds.")
        if not once:
            show_commands(tenants[0], operator_key, url=server.url, plm=plm_name)
            stay(server)
    say("The server was asked to stop (SIGTERM) and ended with exit code 0.")


def tune_voice(plm: Plm, bank: Bank, name: str, dataset: Dataset) -> TunedProfile:
    with tuning_bar(name) as show:
        return tune_profile(plm, bank, dataset, replace(TUNING, description=f"{name}'s voice"), show)


def show_tuned(tenants: list[Tenant]) -> None:
    table = Table("voice", "tuned on", "held out", "loss of the bare model", "loss of the profile", "bytes")
    for tenant in tenants:
        name, train, held_out, bare = tenant.name, tenant.tuned.train, tenant.tuned.held_out, tenant.tuned.bare
        if held_out is None or bare is None:
            fail(f"{name}: no reviews are held out")
        losses = (f"{bare.loss:.3f}", f"[bold]{held_out.loss:.3f}")
        size = f"{tenant.file.stat().st_size:,}"
        table.add_row(name, f"{train.rows} reviews", f"{held_out.rows} reviews", *losses, size)
        if held_out.loss >= bare.loss:
            fail(f"{name}: held-out loss {held_out.loss:.3f} is not below the bare model's {bare.loss:.3f}")
    console.print(table)
    say("Losses are on held-out reviews, in nats a token: how much each next token surprises the model.")


def show_server(tenants: list[Tenant], operator_key: str, client: httpx.Client, held_out: list[str]) -> None:
    before, writer = scrape(client, operator_key), Writer(client)
    step("4", "Each tenant uploads its profile over HTTP, with its own key")
    for tenant in tenants:
        upload(tenant, client)
    step("5", "The same prompts, gone on with by the bare model and by each profile")
    prompts = [json.loads(line)["prompt"] for line in (VOICES / "prompts.jsonl").read_text("utf-8").splitlines()]
    greedy = show_texts(tenants, prompts, writer)
    step("6", f"One of these answers as a stream of server-sent events: {tenants[0].profile}")
    show_stream(tenants[0], prompts[0], greedy[0], writer)
    step("7", "The same in OpenAI's shape: POST /v1/chat/completions")
    show_chat(tenants[0], writer)
    step("8", f"{len(tenants) * len(held_out)} requests of both tenants, one after another and then all at once")
    show_crowd(tenants, held_out, writer)
    step("9", "What the server counted meanwhile (GET /metrics, with the operator's key)")
    tokens = sum(usage["completion_tokens"] for usage in writer.usages)
    expected = {"xpeft_generation_tokens_total": tokens, "xpeft_time_to_first_token_seconds_count": len(writer.usages)}
    show_metrics(before, scrape(client, operator_key), expected)
    step("10", "A tenant writes with its own profiles and nobody else's")
    for tenant, other in zip(tenants, reversed(tenants), strict=True):
        document = {"profile": other.profile, "prompt": prompts[0]}
        answer = call(client, "POST", "/v1/generate", tenant.key, document=document, expect=(404,))
        say(f"{tenant.name} asks for {other.profile}: 404, {answer.json()['error']['message']}")


def show_texts(tenants: list[Tenant], prompts: list[str], writer: Writer) -> list[str]:
    """Returns: what the first tenant's profile wrote, greedily."""
    asked = [(tenants[0], "base"), *((tenant, tenant.profile) for tenant in tenants)]
    table = Table("prompt", *(profile for _, profile in asked), show_lines=True)
    greedy = []
    for prompt in prompts:
        greedy.append([writer.write(tenant, profile, prompt) for tenant, profile in asked])
        table.add_row(Text(prompt), *map(one_line, greedy[-1]))
    drawn = [writer.write(*each, prompts[0], DRAWN) for each in asked]
    rule = ", ".join(f"{name} {value}" for name, value in DRAWN.items())
    table.add_row(Text(f"{prompts[0]}\n({rule})"), *map(one_line, drawn))
    console.print(table)
    if len(set(zip(*greedy, strict=True))) < len(asked):
        fail("a profile wrote the same as another, or as the bare model")
    if drawn != [writer.write(*each, prompts[0], DRAWN) for each in asked]:
        fail("the same seed gave another text")
    return [row[1] for row in greedy]


def show_stream(tenant: Tenant, prompt: str, whole: str, writer: Writer) -> None:
    console.print(" ", end="")
    pieces = []
    for piece in writer.stream(tenant, prompt):
        console.print(Text(piece), end="", soft_wrap=True)
        pieces.append(piece)
    console.print()
    if "".join(pieces) != whole:
        fail(f"the stream {''.join(pieces)!r} is not the whole answer {whole!r}")
    say(f"{sum(map(bool, pieces))} pieces, together the same text as above")


def show_chat(tenant: Tenant, writer: Writer) -> None:
    answer = writer.chat(tenant, "Write a short review of a film that you have just seen.")
    if "error" not in answer:
        say(f"200: {one_line(answer['choices'][0]['message']['content'])}")
    elif answer["error"]["code"] == "no_chat_template":
        say(f"400 no_chat_template, as this model's tokenizer brings none: {answer['error']['message']}")
    else:
        fail(f"the chat was refused: {answer['error']}")


def show_crowd(tenants: list[Tenant], prompts: list[str], writer: Writer) -> None:
    """Whoever asks beside others gets what they got alone."""
    asked = [(tenant, tenant.profile, prompt) for prompt in prompts for tenant in tenants]
    known, began = len(writer.usages), time.monotonic()
    alone = [writer.write(*each) for each in asked]
    between = time.monotonic()
    with ThreadPoolExecutor(len(asked)) as pool:
        together = [each.result() for each in [pool.submit(writer.write, *each) for each in asked]]
    ended = time.monotonic()
    for (tenant, _, prompt), one, other in zip(asked, alone, together, strict=True):
        if one != other:
            fail(f"{tenant.name} got {one!r} alone and {other!r} beside others, for {prompt!r}")
    tokens = sum(usage["completion_tokens"] for usage in writer.usages[known:]) // 2
    say(f"one after another: {between - began:.1f} seconds, {tokens / (between - began):.0f} tokens/s")
    say(f"all at once: {ended - between:.1f} seconds, {tokens / (ended - between):.0f} tokens/s, every text the same")


def one_line(text: str) -> Text:
    return Text(" ".join(text.split()) or "(nothing)")


def show_commands(tenant: Tenant, operator_key: str, *, url: str, plm: str) -> None:
    console.rule("The server stays on until Ctrl-C; try it from another terminal")
    prompt = "Film: Rain (2020)\\nVerdict: fresh\\nReview:"
    for line in (
        f"export KEY={tenant.key}  # {tenant.name}'s, admin",
        f"curl -sN {url}/v1/generate -H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json' \\",
        f'  -d \'{{"profile": "{tenant.profile}", "prompt": "{prompt}", "stream": true}}\'',
        f"curl -s {url}/metrics -H 'Authorization: Bearer {operator_key}'",
        f"{XPEFT} tune --plm {plm} --bank {DATA / 'bank.safetensors'} \\",
        f"  --data {VOICES / 'grump.jsonl'} --url {url} --api-key $KEY --profile another-voice",
    ):
        console.print(Text(line), soft_wrap=True)


if __name__ == "__main__":
    typer.run(demo)
