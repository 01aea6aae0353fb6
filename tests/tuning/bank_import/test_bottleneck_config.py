from __future__ import annotations

import re
from typing import Any

import pytest

from xpeft_tuning.bank_import.bottleneck_config import read_bottleneck_config
from xpeft_tuning.bank_import.checkpoint import read_checkpoint
from xpeft_tuning.bank_import.errors import CheckpointInvalid, CheckpointUnsupported

# What the library writes for its configurations of these names, where it differs from a fitting one.
SEQ_BN = {"original_ln_before": True}
DOUBLE_SEQ_BN = {"mh_adapter": True, "non_linearity": "swish"}
PAR_BN = {"is_parallel": True, "scaling": 4.0, "init_weights": "mam_adapter"}
COMPACTER = {"mh_adapter": True, "phm_layer": True, "non_linearity": "gelu"}
ADAPTER_PLUS = {"original_ln_before": True, "original_ln_after": False, "scaling": "channel"}


@pytest.mark.parametrize(
    ("config", "reasons"),
    [
        (SEQ_BN, ["original_ln_before is true (it reads the block's sum, after residual add and LayerNorm)"]),
        (
            DOUBLE_SEQ_BN,
            [
                "mh_adapter is true (it has adapters behind the attention too)",
                'non_linearity is "swish", it must be relu or gelu (the exact one)',
            ],
        ),
        (PAR_BN, ["is_parallel is true"]),
        (COMPACTER, ["mh_adapter is true", "phm_layer is true"]),
        (ADAPTER_PLUS, ["original_ln_before is true", "original_ln_after is false", 'scaling is "channel"']),
        ({"output_adapter": False}, ["output_adapter is false"]),
        ({"cross_adapter": True}, ["cross_adapter is true"]),
        ({"ln_before": True}, ["ln_before is true"]),
        ({"ln_after": True}, ["ln_after is true"]),
        ({"use_gating": True}, ["use_gating is true"]),
        ({"residual_before_ln": "post_add"}, ['residual_before_ln is "post_add"']),
        ({"inv_adapter": "nice"}, ['inv_adapter is "nice"']),
        ({"invertible_adapter": {"block_type": "nice"}}, ['invertible_adapter is {"block_type": "nice"}']),
        ({"scaling": "learned"}, ['scaling is "learned", it must be a number']),
        ({"non_linearity": "gelu_new"}, ['non_linearity is "gelu_new"']),
        ({"non_linearity": None}, ["non_linearity is null"]),
        ({"architecture": "lora"}, ["architecture is 'lora', it must be a bottleneck adapter"]),
        ({"sharpness": 3}, ["sharpness is 3, a field that is not known here"]),
    ],
    ids=str,
)
def test_what_a_bank_does_not_compute_is_refused_by_field_and_value(save: Any, config: Any, reasons: list[str]) -> None:
    folder = save.bottleneck(**config)
    with pytest.raises(CheckpointUnsupported) as refused:
        read_bottleneck_config(read_checkpoint(folder))
    message = str(refused.value)
    assert message.startswith(f"{folder}: ")
    assert [reason for reason in reasons if reason not in message] == []
    assert message.endswith("; a bank takes what SeqBnConfig(original_ln_before=False) trains")


@pytest.mark.parametrize(
    ("scaling", "shown"), [(float("nan"), "NaN"), (-float("inf"), "-Infinity"), (1e39, "1e+39"), (10**400, "1000")]
)
def test_a_scaling_that_no_bank_can_hold_is_refused_by_field_and_value(save: Any, scaling: float, shown: str) -> None:
    folder = save.bottleneck(scaling=scaling)
    with pytest.raises(CheckpointInvalid, match=rf"^{folder}: scaling is {re.escape(shown)}.*, it must be finite"):
        read_bottleneck_config(read_checkpoint(folder))


def test_what_matters_to_training_alone_does_not_matter_here(save: Any) -> None:
    kept = {"dropout": 0.3, "stochastic_depth": 0.1, "init_weights": "bert", "init_weights_seed": 4, "phm_dim": 4}
    folder = save.bottleneck(
        scaling=2, residual_before_ln=False, adapter_residual_before_ln=True, leave_out=[5], **kept
    )
    config = read_bottleneck_config(read_checkpoint(folder))
    assert config == ("relu", 2.0, {5})


@pytest.mark.parametrize(("name", "meaning"), [("gelu", "gelu_new"), ("gelu_orig", None)])
def test_gelu_in_a_file_without_a_version_is_the_approximate_one(save: Any, name: str, meaning: str | None) -> None:
    checkpoint = read_checkpoint(save.bottleneck(non_linearity=name, top={"version": None}))
    if meaning is None:
        assert read_bottleneck_config(checkpoint).activation == "gelu"
    else:
        with pytest.raises(CheckpointUnsupported, match=rf'non_linearity is "{name}" \({meaning}\)'):
            read_bottleneck_config(checkpoint)


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ({"config": "pfeiffer"}, "config is 'pfeiffer', it must be an object"),
        ({"config": {"mh_adapter": False, "output_adapter": True}}, "config has no non_linearity"),
        (
            {"config": {"mh_adapter": False, "output_adapter": True, "non_linearity": "relu", "leave_out": "all"}},
            'leave_out is "all", it must be a list of numbers',
        ),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused(save: Any, top: Any, message: str) -> None:
    with pytest.raises(CheckpointInvalid, match=re.escape(message)):
        read_bottleneck_config(read_checkpoint(save.bottleneck(top=top)))
