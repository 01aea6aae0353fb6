"""Which LoRA configurations of PEFT are plain ones: scale · B(A x) beside the layers that they name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from .checkpoint import Checkpoint, check_finite
from .errors import CheckpointInvalid, CheckpointUnsupported

HEADS = ("classifier", "pre_classifier", "score", "qa_outputs")
"""Modules on top of a language model in transformers, which a bank's adapter does not need."""

_READ = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save", "bias")
_SEEN_IN_THE_TENSORS = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    "ensure_weight_tying",  # of embeddings and a vocabulary's head alone
)
_OF_TRAINING = ("lora_dropout", "inference_mode", "eva_config", "loftq_config", "corda_config", "lora_ga_config")
_OF_WHAT_IS_OFF = ("megatron_core", "qalora_group_size")
_OF_THE_MODEL = ("base_model_name_or_path", "revision", "auto_mapping", "task_type", "peft_version", "fan_in_fan_out")
_KNOWN = {*_READ, *_SEEN_IN_THE_TENSORS, *_OF_TRAINING, *_OF_WHAT_IS_OFF, *_OF_THE_MODEL, "init_lora_weights"}
_KEEP_THE_MODEL = (True, False, "gaussian", "eva", "orthogonal", "mica")


class LoraConfig:
    """Rank and scale of the pair at each module.

    Raises: CheckpointUnsupported with every field that stands in the way; CheckpointInvalid.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path = checkpoint.path
        self._config = checkpoint.config
        if wrong := _wrong(checkpoint.config):
            raise CheckpointUnsupported(f"{checkpoint.path}: {'; '.join(wrong)}")

    def scale(self, module: str, *, rank: int) -> float:
        """alpha / r, alpha / √r with use_rslora; a pattern that ends the module's path overrides r or alpha.

        Args: rank: what the tensors say.
        """
        wanted = self._number(module, "r", "rank_pattern")
        if wanted <= 0:
            raise CheckpointInvalid(f"{self._path}: r of {module} is {wanted:g}, it must be 1 at least")
        alpha = self._number(module, "lora_alpha", "alpha_pattern")
        if rank != wanted:
            raise CheckpointInvalid(f"{self._path}: {module} has rank {rank}, its configuration says {wanted:g}")
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _number(self, module: str, field: str, pattern_field: str) -> float:
        patterns = self._config.get(pattern_field) or {}
        default = self._config.get(field, 8)  # as PEFT has it, for both
        try:
            number = next(
                (value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default
            )
        except (re.error, AttributeError):
            raise CheckpointInvalid(
                f"{self._path}: {pattern_field} is {json.dumps(patterns)}, it must be an object of regular expressions"
            ) from None
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise CheckpointInvalid(f"{self._path}: {field} of {module} is {json.dumps(number)}, it must be a number")
        check_finite(self._path, f"{field} of {module}", number)
        return number


def _wrong(config: Mapping[str, Any]) -> list[str]:
    if config["peft_type"] != "LORA":
        return [f"peft_type is {config['peft_type']!r}, it must be 'LORA'"]
    found = []
    if (bias := config.get("bias", "none")) != "none":
        found.append(f"bias is {bias!r}, it must be 'none': a bank changes no bias of the model")
    if (start := config.get("init_lora_weights", True)) not in _KEEP_THE_MODEL:
        found.append(
            f"init_lora_weights is {start!r}, which changes the model's own weights: let PEFT write a LoRA of the "
            "original weights (path_initial_model_for_weight_conversion)"
        )
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(name in HEADS for name in saved):
        found.append(
            f"modules_to_save is {json.dumps(saved)}: but for a head ({', '.join(HEADS)}) nothing of them fits a bank"
        )
    found += [
        f"{field} is {json.dumps(value)}, a field that is not known here"
        for field, value in config.items()
        if field not in _KNOWN and value
    ]
    return found
