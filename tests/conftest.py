"""What every test can ask for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

# Before anything imports the hub's client, which reads them once: no test may need the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Before anything imports Triton: without a GPU its interpreter runs the kernels, on CPU tensors.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What was imported by then stays: the garbage collector need not look through all of it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder of pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Of products this small, threads only wait for one another. A test may set another number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def quick_interpreter() -> Iterator[None]:
    """Triton's would look through its whole language again at each call of a function within a kernel."""
    from triton import language
    from triton.runtime import interpreter

    replace = interpreter._patch_lang

    def replace_once(function: FunctionType) -> interpreter._LangPatchScope:
        named = [each for each in function.__globals__.values() if each is language or each is language.core]
        if any(language.core.is_builtin(each.load) for each in named):
            return replace(function)
        return interpreter._LangPatchScope()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", replace_once)
        yield


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Waits for a condition on the event loop, 20 seconds at most."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.001)

    return wait


@pytest.fixture(scope="session")
def warm_programs(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[Path]:
    """A folder with an ``xpeft`` and a ``python`` that start in no time; what is left of them ends with the session."""
    started = runpy.run_path(str(project_root / "tests" / "warm_programs.py"))["started"]
    with started(tmp_path_factory.mktemp("warm"), COLUMNS="120") as folder:
        yield folder


@pytest.fixture
def warm_children(warm_programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that this process starts begin in no time. Of their memory and their time nothing can be measured."""
    monkeypatch.setattr(sys, "executable", str(warm_programs / "python"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random-weight BERT (L=2, H=32, 64 positions) and a word-level tokenizer ("w0" … "w99")."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(100))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random-weight Llama (L=2, H=32, 64 positions) and a word-level tokenizer ("w0" … "w99").

    The tokenizer adds no special tokens; "</s>" ends a text.
    """
    words = [f"w{number}" for number in range(100)]
    return _save_word_llama(tmp_path_factory.mktemp("tiny-llama"), words, hidden=32, positions=64)


@pytest.fixture(scope="session")
def save_word_llama() -> Callable[..., Path]:
    """Saves a random-weight Llama (L=2) with a token for each word: ``(folder, words, hidden=…, positions=…)``."""
    return _save_word_llama


def _save_word_llama(folder: Path, words: Sequence[str], *, hidden: int, positions: int) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "</s>", *words]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def start_example(tmp_path: Path, project_root: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a program of examples/ in a copy, so that what it writes beside its folder lies in ``tmp_path``."""
    shutil.copytree(project_root / "examples", tmp_path / "examples")

    def start(program: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "examples" / program), *arguments],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "120"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


_CHOSEN_PORTS: set[int] = set()


def _free_port() -> int:
    """A port of the loopback address that stays free until a server that is started with its number takes it.

    The system gives ports from 32768 up to clients, many a second. Those that Ray gives its workers end below 20000. A
    Redis cluster's node takes the port 10000 above its own too.
    """
    left = set(range(20_000, 22_768)) - _CHOSEN_PORTS
    for port in random.SystemRandom().sample(sorted(left), len(left)):
        with contextlib.suppress(OSError), socket.socket() as server, socket.socket() as cluster:
            server.bind(("127.0.0.1", port))
            cluster.bind(("127.0.0.1", port + 10_000))
            _CHOSEN_PORTS.add(port)
            return port
    pytest.fail("no port between 20000 and 22767 is free")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Chooses a port for a server that is told its number, another at each call."""
    return _free_port


@pytest.fixture(scope="session")
def redis_in(project_root: Path) -> Callable[..., Any]:
    """A Redis server (``redis_server.py``) over a folder, not yet started; who starts it ends it."""
    server = runpy.run_path(str(project_root / "tests" / "redis_server.py"))["RedisServer"]
    return lambda folder, options="": server(folder, _free_port(), options)


@pytest.fixture(scope="session")
def redis_server(redis_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One for all tests that leave it alone. Nobody gives it up because the machine is busy."""
    server = redis_in(tmp_path_factory.mktemp("redis"), "?socket_timeout=20&socket_connect_timeout=20")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_redis(redis_in: Callable[..., Any], tmp_path: Path) -> Iterator[Any]:
    """One for a test that kills, stops or fills it."""
    server = redis_in(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def make_collector(project_root: Path) -> Callable[[], Any]:
    """A collector of traces (``collector.py``); who makes it closes it."""
    made: Callable[[], Any] = runpy.run_path(str(project_root / "tests" / "collector.py"))["Collector"]
    return made


@pytest.fixture
def collector(make_collector: Callable[[], Any]) -> Iterator[Any]:
    """A collector of traces for one test."""
    collector = make_collector()
    yield collector
    collector.close()
