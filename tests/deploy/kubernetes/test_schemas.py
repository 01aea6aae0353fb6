"""Every object against the schemas of Kubernetes, for each version that is supported."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
from packaging.version import Version

# The oldest that knows preStop's sleep without a feature gate.
OLDEST = Version("1.30")
# Kinds that a cluster knows only from the Prometheus operator.
CUSTOM = {"ServiceMonitor"}


def supported_versions() -> list[str]:
    known = {Version(each).release[:2] for each in kubernetes_validate.utils.all_versions()}
    return [".".join(map(str, each)) for each in sorted(known) if each >= OLDEST.release]


@pytest.mark.parametrize("version", supported_versions())
def test_every_object_is_what_the_strict_schema_of_this_kubernetes_takes(
    version: str, installations: Any, namespace: Any
) -> None:
    every = [namespace, *(each for installation in installations for each in installation.objects)]
    different = {json.dumps(each, sort_keys=True): each for each in every if each["kind"] not in CUSTOM}
    assert len(different) > len(installations)
    for each in different.values():
        assert kubernetes_validate.validate(each, version, strict=True) == version


@pytest.mark.parametrize("spoil", [lambda c: c.update(readynessProbe={}), lambda c: c["ports"][0].update(name=80)])
def test_those_schemas_refuse_a_misspelt_field_and_a_wrong_type(install: Any, spoil: Callable[[Any], None]) -> None:
    deployment = copy.deepcopy(install("ha").the("Deployment"))
    spoil(deployment["spec"]["template"]["spec"]["containers"][0])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)


def test_every_object_lands_in_the_namespace_that_admits_restricted_pods_only(
    installation: Any, namespace: Any
) -> None:
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert {each["metadata"]["namespace"] for each in installation.objects} == {namespace["metadata"]["name"]}
