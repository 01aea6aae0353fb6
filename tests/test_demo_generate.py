"""The demo of generation, as a process, over a tiny model with random weights that knows every word of the voices."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

StartExample = Callable[..., subprocess.Popen[str]]

VOICES = ("fan", "grump")
Row = dict[str, str]


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def start_example(start_example: StartExample, warm_children: None) -> StartExample:
    """With the ``python`` that starts in no time, and its ``xpeft``."""
    return start_example


@pytest.fixture(scope="module")
def voices(project_root: Path) -> dict[str, list[Row]]:
    return {name: _rows(project_root / "examples" / "voices" / f"{name}.jsonl") for name in VOICES}


@pytest.fixture(scope="module")
def word_llama(
    tmp_path_factory: pytest.TempPathFactory,
    voices: dict[str, list[Row]],
    project_root: Path,
    save_word_llama: Callable[..., Path],
) -> Path:
    """A Llama whose tokens are the words and signs of all prompts and reviews."""
    rows = [*voices["fan"], *voices["grump"], *_rows(project_root / "examples" / "voices" / "prompts.jsonl")]
    texts = [row["prompt"] + row.get("completion", "") for row in rows]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)})
    return save_word_llama(tmp_path_factory.mktemp("word-llama"), words, hidden=64, positions=128)


@pytest.fixture
def chatting_llama(word_llama: Path, tmp_path: Path) -> Path:
    """The same with a template for chats."""
    folder = tmp_path / "chatting-llama"
    shutil.copytree(word_llama, folder)
    template = "{% for message in messages %}Film: {{ message.content }} Review:{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def _make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    ours = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ONCE", "PLM"}
    told = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(["make", *arguments], cwd=root, env=told, capture_output=True, text=True, check=False)


def test_the_demo_runs_through_and_ends_by_itself(
    word_llama: Path, start_example: StartExample, tmp_path: Path
) -> None:
    demo = start_example("demo_generate.py", "--once", "--plm", str(word_llama))
    output, errors = demo.communicate(timeout=300)
    assert demo.returncode == 0, output + errors
    for said in (
        "PUT /v1/profiles/fan-voice: 201",
        "together the same text as above",
        "400 no_chat_template",
        "16 requests of both tenants",
        "every text the same",
        "xpeft_time_to_first_token_seconds_count",
        "grump asks for fan-voice: 404",
        "ended with exit code 0",
    ):
        assert said in output
    losses = re.findall(r"│ (fan|grump) +│ 32 reviews │ 8 reviews │ +([\d.]+) +│ +([\d.]+) +│", output)
    assert [name for name, _, _ in losses] == list(VOICES)
    assert all(float(tuned) < float(bare) for _, bare, tuned in losses)
    tokens = re.search(r"│ xpeft_generation_tokens_total +│ +0 +│ +(\d+) +│", output)
    assert tokens is not None
    assert int(tokens[1]) >= 48
    assert {path.name for path in (tmp_path / "demo-generate-data").glob("*.safetensors")} == {
        "bank.safetensors",
        "fan-voice.safetensors",
        "grump-voice.safetensors",
    }


def test_a_model_with_a_chat_template_chats_and_the_server_stays_until_the_demo_is_interrupted(
    chatting_llama: Path, start_example: StartExample
) -> None:
    demo = start_example("demo_generate.py", "--plm", str(chatting_llama))
    assert demo.stdout is not None
    with demo.stdout, demo.stderr or demo.stdout:
        lines = iter(demo.stdout.readline, "")
        before: list[str] = []
        while (found := re.search(r"curl -sN (\S+)/v1/generate", before[-1] if before else "")) is None:
            before.append(next(lines))
        url = found[1]
        assert [line for line in before if line.startswith("  200: ")] != []
        assert "no_chat_template" not in "".join(before)
        while "--profile another-voice" not in next(lines):
            pass
        assert httpx.get(f"{url}/ready").status_code == httpx.codes.OK
        demo.send_signal(signal.SIGINT)
        assert "ended with exit code 0" in "".join(lines)
    assert demo.wait(timeout=60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/ready")


def test_a_model_that_cannot_tell_the_voices_apart_fails_with_exit_code_1(
    tiny_llama: Path, start_example: StartExample
) -> None:
    """To a model that knows none of the words both say nothing."""
    demo = start_example("demo_generate.py", "--once", "--plm", str(tiny_llama))
    output, errors = demo.communicate(timeout=300)
    assert demo.returncode == 1, output + errors
    assert "The demo failed: a profile wrote the same as another" in output


def test_an_encoder_is_refused_before_anything_is_tuned(tiny_bert: Path, start_example: StartExample) -> None:
    demo = start_example("demo_generate.py", "--once", "--plm", str(tiny_bert))
    output, errors = demo.communicate(timeout=300)
    assert demo.returncode == 1, output + errors
    assert "(bert) does not write text" in output
    assert "fan" not in output


def test_without_a_model_make_says_in_one_line_what_is_missing(project_root: Path) -> None:
    done = _make(project_root, "demo-generate")
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "demo-generate needs a causal language model: make demo-generate PLM=PATH_OR_HUB_ID, for example" in line


def test_make_passes_on_the_model_and_whether_to_end(project_root: Path) -> None:
    for arguments, command in (
        (["PLM=a/b"], "--plm 'a/b'"),
        (["PLM=a/b", "ONCE=1"], "--once --plm 'a/b'"),
    ):
        planned = _make(project_root, "-n", "demo-generate", *arguments)
        assert planned.returncode == 0, planned.stderr
        lines = [" ".join(line.split()) for line in planned.stdout.splitlines()]
        assert f".venv/bin/python examples/demo_generate.py {command}" in lines


def test_make_lists_the_demo_of_generation(project_root: Path) -> None:
    assert re.search(r"^make demo-generate +\w", _make(project_root).stdout, re.MULTILINE)


@pytest.mark.parametrize("voice", VOICES)
def test_a_voice_has_forty_reviews_of_which_a_fifth_is_held_out(voices: dict[str, list[Row]], voice: str) -> None:
    rows = voices[voice]
    assert [row.keys() for row in rows] == [{"prompt", "completion", "split"}] * 40
    assert sorted(row["split"] for row in rows) == ["test"] * 8 + ["train"] * 32
    assert len({row["completion"] for row in rows}) == 40
    assert all(re.fullmatch(r" \S.*[.!]", row["completion"]) for row in rows)


def test_both_voices_review_the_same_films_each_once(voices: dict[str, list[Row]]) -> None:
    fan, grump = ([(row["prompt"], row["split"]) for row in rows] for rows in voices.values())
    assert fan == grump
    assert len({prompt for prompt, _ in fan}) == len(fan)


def test_nobody_has_reviewed_the_films_that_all_are_asked_about(
    voices: dict[str, list[Row]], project_root: Path
) -> None:
    asked = _rows(project_root / "examples" / "voices" / "prompts.jsonl")
    assert [row.keys() for row in asked] == [{"prompt"}] * 3
    assert not {row["prompt"] for row in asked} & {row["prompt"] for row in voices["fan"]}


def test_the_readme_of_the_examples_names_every_file_of_the_voices(project_root: Path) -> None:
    readme = (project_root / "examples" / "README.md").read_text(encoding="utf-8")
    for path in (project_root / "examples" / "voices").iterdir():
        assert f"`voices/{path.name}`" in readme
