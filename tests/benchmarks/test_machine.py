from __future__ import annotations

from pathlib import Path

from xpeft_benchmarks.machine import cpu_model, machine, versions


def test_the_processor_is_named_with_its_bfloat16_instructions(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: sse avx512_bf16 amx_bf16\n")
    assert cpu_model(tmp_path / "cpuinfo") == "Some CPU (amx_bf16, avx512_bf16)"


def test_a_machine_without_that_file_still_has_a_name(tmp_path: Path) -> None:
    assert cpu_model(tmp_path / "nothing")


def test_a_machine_has_cores_and_memory() -> None:
    facts = machine()
    assert isinstance(facts["cores"], int)
    assert facts["cores"] >= 1
    assert isinstance(facts["memory_bytes"], int)
    assert facts["memory_bytes"] > 2**28


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert versions(["numpy", "no-such-package-at-all"]).keys() == {"python", "xpeft-server", "numpy"}
