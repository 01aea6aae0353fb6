"""The demo, as a process, over a tiny model that reads words: everything but the quality of MiniLM."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

StartExample = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_example(start_example: StartExample, warm_children: None) -> StartExample:
    """With the ``python`` that starts in no time, and its ``xpeft``."""
    return start_example


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


@pytest.fixture(scope="module")
def bag_of_words(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """A one-block BERT with random weights that knows every word of the examples."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bag-of-words")
    texts = [file.read_text(encoding="utf-8") for file in sorted((project_root / "examples").glob("*.jsonl"))]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for row in rows for word in _words(row["text"])})]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=len(words),
                hidden_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
            ),
            add_pooling_layer=False,
        ).save_pretrained(folder)
    return folder


def test_the_demo_runs_through_and_ends_by_itself(
    bag_of_words: Path, start_example: StartExample, tmp_path: Path
) -> None:
    demo = start_example("demo.py", "--once", "--plm", str(bag_of_words))
    output, errors = demo.communicate(timeout=300)
    assert demo.returncode == 0, output + errors
    for said in (
        "PUT /v1/profiles/airline-desk: 201",
        'xpeft_profile_uploads_total{outcome="created"}',
        "clinic asks for airline-desk: 404",
        "ended with exit code 0",
    ):
        assert said in output
    assert {path.name for path in (tmp_path / "demo-data").glob("*.safetensors")} == {
        "bank.safetensors",
        "airline-desk.safetensors",
        "bank-desk.safetensors",
        "clinic-desk.safetensors",
    }


def test_without_once_the_server_stays_until_the_demo_is_interrupted(
    bag_of_words: Path, start_example: StartExample
) -> None:
    demo = start_example("demo.py", "--plm", str(bag_of_words))
    assert demo.stdout is not None
    with demo.stdout, demo.stderr or demo.stdout:
        lines = iter(demo.stdout.readline, "")
        url = next(match[1] for line in lines if (match := re.search(r"curl -s (\S+)/v1/classify", line)))
        while "--profile another-desk" not in next(lines):
            pass
        assert httpx.get(f"{url}/ready").status_code == httpx.codes.OK
        demo.send_signal(signal.SIGINT)
        assert "ended with exit code 0" in "".join(lines)
    assert demo.wait(timeout=60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/ready")


def test_a_demo_that_cannot_learn_fails_with_exit_code_1(tiny_bert: Path, start_example: StartExample) -> None:
    """To a model that knows none of the words every message is the same."""
    demo = start_example("demo.py", "--once", "--plm", str(tiny_bert))
    output, errors = demo.communicate(timeout=300)
    assert demo.returncode == 1, output + errors
    assert "The demo failed: airline: held-out accuracy" in output
