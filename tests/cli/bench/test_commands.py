from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from xpeft_server.cli.bench.commands import app

BANK = "random:N=8,R=4,seed=0"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"w{n} w{n + 1}"}) + "\n" for n in range(30)), encoding="utf-8")
    return path


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch | None = None) -> Result:
    if monkeypatch is not None:
        monkeypatch.setattr(sys, "argv", ["xpeft", "bench", *arguments])
    return CliRunner().invoke(app, list(arguments))


def test_ops_shows_a_table_and_writes_lines(
    tiny_bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "ops.jsonl"
    options = f"--bank {BANK} --dtype float32 --device cpu --batch 4 --rounds 1 --profiles 4 --texts 8".split()
    words = ["ops", "--plm", str(tiny_bert), *options, "--data", str(texts), "--json", str(out)]
    done = run(*words, "--popularity", "distinct", monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    assert "mixed distinct" in done.output
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert {line["benchmark"] for line in lines} == {"ops"}
    assert lines[0]["command"].startswith("xpeft bench ops --plm tiny-bert")
    assert str(tiny_bert.parent) not in out.read_text(encoding="utf-8")
    assert lines[0]["settings"]["dtype"] == "float32"
    assert lines[0]["settings"]["data"] == "texts.jsonl"


def test_tune_shows_a_table_and_writes_lines(
    tiny_bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tune.jsonl"
    options = f"--bank {BANK} --device cpu --profiles 3 --rows 8 --epochs 2 --batch-rows 4 --rounds 1".split()
    words = ["tune", "--plm", str(tiny_bert), *options, "--data", str(texts), "--json", str(out)]
    done = run(*words, monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    lines = {line["variant"]: line for line in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    assert set(lines) == {"packed", "placed"}
    assert lines["placed"]["ratios"][0]["to"] == "packed"
    assert lines["packed"]["unit"] == "profiles"
    for line in lines.values():
        details = line["details"]
        assert line["per_second"] == pytest.approx(3 / (details["begin_s"] + details["steps_s"]), rel=1e-3)
        assert details["steps_per_s"] == pytest.approx(4 / details["steps_s"], rel=1e-3)
        assert line["settings"]["dtype"] == "float32"
    # Two words and two special tokens in sixteen.
    assert lines["packed"]["details"]["padding"] == 0
    assert lines["placed"]["details"]["padding"] == 0.75


def test_shapes_shows_a_table_and_writes_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "shapes.jsonl"
    options = "--tokens 64 --adapters 3 --width 8 --device cpu --dtype float32 --rounds 1"
    words = ["shapes", "--shape", "minilm", *options.split()]
    done = run(*words, "--json", str(out), monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    lines = {line["variant"]: line for line in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    assert lines["minilm T=64 mixed"]["ratios"][0]["to"] == "minilm T=64 bare"
    assert lines["minilm T=64 mixed"]["settings"]["width"] == 8
    assert "shape 'gpt9' is not known" in run("shapes", "--shape", "gpt9").output


@pytest.mark.usefixtures("warm_children")
def test_serve_shows_a_table_and_writes_lines(
    tiny_bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "serve.jsonl"
    options = f"--bank {BANK} --dtype float32 --device cpu --profiles 3 --rounds 1 --seconds 1 --texts 8".split()
    words = ["serve", "--plm", str(tiny_bert), *options, "--data", str(texts), "--json", str(out)]
    done = run(*words, "--concurrency", "4", monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    lines = {line["variant"]: line for line in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    assert lines.keys() == {"http c=4", "engine batch=4"}
    assert lines["http c=4"]["ratios"][0]["to"] == "engine batch=4"
    assert str(tiny_bert.parent) not in out.read_text(encoding="utf-8")


def test_load_starts_a_server_shows_tables_and_writes_lines_and_a_plot(
    tiny_bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plot = tmp_path / "load.jsonl", tmp_path / "load.html"
    options = f"--bank {BANK} --dtype float32 --device cpu --profiles 3 --rounds 1 --seconds 0.5 --texts 8".split()
    words = ["load", "--plm", str(tiny_bert), *options, "--data", str(texts), "--json", str(out), "--plot", str(plot)]
    done = run(*words, "--rates", "50,100", "--slo", "30s", "--name", "here", monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    assert "p50 / p99 ms" in done.output
    assert "here within 30000 ms  100 requests/s" in done.output
    lines = {line["variant"]: line for line in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    assert lines.keys() == {"here 50/s", "here 100/s", "here within 30000 ms"}
    assert lines["here 100/s"]["details"]["requests"] == 50
    assert lines["here 100/s"]["details"]["mean_batch"] >= 1
    assert lines["here 100/s"]["details"]["server_cpu_ms"] > 0
    assert lines["here 100/s"]["settings"]["server"]["--dtype"] == "float32"
    assert str(tiny_bert.parent) not in out.read_text(encoding="utf-8")
    assert "rate, requests sent a second" in plot.read_text(encoding="utf-8")


@pytest.mark.usefixtures("warm_children")
def test_generate_shows_a_table_and_writes_lines(
    tiny_llama: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plm, out = tmp_path / "longer-llama", tmp_path / "generate.jsonl"
    shutil.copytree(tiny_llama, plm)
    config = json.loads((plm / "config.json").read_text(encoding="utf-8"))
    (plm / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}), encoding="utf-8")
    options = f"--bank {BANK} --dtype float32 --device cpu --requests 4 --profiles 2 --rounds 1 --no-continuous".split()
    words = ["generate", "--plm", str(plm), *options, "--data", str(texts), "--json", str(out)]
    done = run(*words, monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    lines = {line["variant"]: line for line in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    assert [each["to"] for each in lines["engine 2 profiles"]["ratios"]] == [
        "transformers padded 32",
        "engine one profile",
        "engine bare PLM",
    ]
    assert lines["staggered engine 2 profiles"]["ratios"][0]["to"] == "staggered transformers padded 32"
    assert not [name for name in lines if "continuous" in name]
    assert lines["engine 2 profiles"]["settings"]["max_batch_tokens"] == 1024
    assert lines["engine 2 profiles"]["settings"]["plm"] == "longer-llama"
    assert str(tmp_path) not in out.read_text(encoding="utf-8")


@pytest.mark.usefixtures("warm_children")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["generate"], "has no language-model head and does not generate"),
        (["ops", "--popularity", "pareto"], "popularity 'pareto'"),
        (["ops", "--bank", "random:N=x"], "N is 'x'"),
        (["ops", "--data", "gone.jsonl"], "gone.jsonl"),
        (["serve", "--popularity", "zipf"], "popularity 'zipf'"),
        (["serve", "--concurrency", "0"], "'0' is not a whole number"),
        (["serve", "--url", "ftp://x"], "'ftp://x' is not of the form"),
        (["serve", "--url", "http://x:1", "--slots", "3"], "leave them out with --url"),
        (["serve", "--url", "https://x:1"], "bench serve speaks plain HTTP only"),
        (["serve", "--infinity-python", "/nowhere/python"], "infinity_emb is not there"),
        (["load", "--rates", "0"], "rates '0': '0' is neither auto nor a number"),
        (["load", "--rates", "1"], "rate 1 for 10 seconds is 10 requests, too few"),
        (["load", "--slo", "5"], "slo '5' is not a time"),
        (["load", "--slo-per-token", "5ms"], "--slo-per-token is of text that is written"),
        (["load", "--new-tokens", "5"], "--new-tokens is of text that is written"),
        (["load", "--plot", "x.pdf"], "plot 'x.pdf' does not end in .png or .html"),
        (["load", "--plot", "gone/x.png"], "there is no folder gone"),
        (["load", "--lengths", "gone.csv"], "gone.csv cannot be read"),
        (["load", "--url", "http://u:p@x:1"], "'http://***@x:1' is not of the form"),
        (["load", "--url", "http://x:99999"], "Port out of range"),
        (["load", "--url", "http://x:1", "--slots", "3"], "--slots is for a server that this command starts"),
        (["load", "--api-key", "xp_x"], "--api-key is of a server that runs already"),
        (["load", "--url", "http://x:1", "--api-key", "xp_\n"], "the API key has characters that no key has"),
        (["load", "--against-name", "x"], "--against-name is of a second server"),
        (["load", "--against", "http://x:1", "--name", "x:1"], "both targets are called 'x:1'"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    words: list[str], says: str, tiny_bert: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XPEFT_BANK", BANK)
    data = [] if "--data" in words else ["--data", str(texts)]
    done = run(words[0], "--plm", str(tiny_bert), *words[1:], *data)
    assert done.exit_code == 1
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("xpeft: ")
    assert says in last


def test_every_command_in_the_benchmarks_readme_has_only_options_that_there_are(project_root: Path) -> None:
    readme = (project_root / "benchmarks" / "README.md").read_text(encoding="utf-8")
    commands = [line.split()[2:] for line in readme.splitlines() if line.startswith("xpeft bench ")]
    known = get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) > 5
    for name, *words in commands:
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
