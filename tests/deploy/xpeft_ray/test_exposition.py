"""The metrics of several processes in one text."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from xpeft_ray.exposition import ReplicatedMetrics, merged
from xpeft_server.engine.metrics import Metrics


def series(text: bytes) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_every_series_of_every_process_is_there_with_its_value_and_its_replica() -> None:
    expositions = {}
    for number, name in enumerate(("a", "b"), start=1):
        metrics = Metrics()
        metrics.prompt_tokens.inc(number)
        metrics.batch_size.observe(3 * number)
        expositions[name] = metrics.render()
    together = series(merged(expositions))
    apart = {
        f"{sample.name}{sorted({**sample.labels, 'replica': name}.items())}": sample.value
        for name, text in expositions.items()
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    assert together == apart
    assert together["xpeft_prompt_tokens_total[('replica', 'b')]"] == 2


def test_each_family_is_described_once_as_it_was() -> None:
    one = Metrics().render()
    lines = merged({"a": one, "b": one}).decode().splitlines()
    described = [line for line in lines if line.startswith("#")]
    assert described == [line for line in one.decode().splitlines() if line.startswith("#")]


def test_an_ingress_shows_itself_as_it_is_now_and_others_as_they_were_told() -> None:
    other = Metrics()
    other.prompt_tokens.inc(7)
    stale = Metrics().render()
    metrics = ReplicatedMetrics(top_profiles=3, name="me", others=lambda: {"engine": other.render(), "me": stale})
    metrics.prompt_tokens.inc(1)
    shown = series(metrics.render())
    assert shown["xpeft_prompt_tokens_total[('replica', 'engine')]"] == 7
    assert shown["xpeft_prompt_tokens_total[('replica', 'me')]"] == 1
    assert "replica" not in metrics.own().decode()
