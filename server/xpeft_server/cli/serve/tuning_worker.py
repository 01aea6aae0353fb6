"""The program of a tuning worker: a child of the server that tunes one profile after the other.

It reads frames from stdin and writes frames to stdout; what libraries print goes to stderr. It ends with its parent,
and knows nothing of the store.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from xpeft_server.log_lines import configure_logging
from xpeft_server.settings import SettingsInvalid

from .device_share import DeviceShare, run_when_idle
from .worker_frames import Frame, encode_frame, read_frame

if TYPE_CHECKING:
    from xpeft_server.model.banks.bank import Bank
    from xpeft_server.model.plm import Plm
    from xpeft_tuning.dataset import Dataset, Task
    from xpeft_tuning.mask_tuner import TunedProfile, TuningProgress

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_TOLD_SECONDS: Final = 0.1  # least time between two frames about progress


class Model(NamedTuple):
    plm: Plm
    bank: Bank


class Worker:
    """Tunes what the server asks for.

    Args:
        setup: the first message: ``plm``, ``bank`` and ``device`` by name, ``share`` of the device's time.
    """

    def __init__(self, setup: dict[str, Any], answers: IO[bytes]) -> None:
        self._setup = setup
        self._answers = answers
        self._model: Model | None = None
        self._told = 0.0

    def tune(self, job: dict[str, Any]) -> bool:
        """Answer one job. Returns: False if this process cannot do another, which the answer says too."""
        from xpeft_server.model.errors import ModelError
        from xpeft_tuning.errors import TuningError, TuningSettingsInvalid

        try:
            dataset = _dataset(job)
            tuned = self._tuned(dataset, job["settings"])
        except TuningSettingsInvalid as error:
            self._fail(error, code="invalid_settings", type_="invalid_request_error", param="settings")
        except TuningError as error:
            self._fail(error, code="invalid_examples", type_="invalid_request_error", param="examples")
        except (ModelError, SettingsInvalid) as error:
            self._fail(error, code="tuning_failed", type_="server_error")
        except Exception as error:
            logger.exception("a job failed")
            self._fail(f"{type(error).__name__}: {error}", code="tuning_failed", type_="server_error", last=True)
            return False
        else:
            self._deliver(tuned, dataset.task)
        return True

    def _tuned(self, dataset: Dataset, asked: dict[str, Any]) -> TunedProfile:
        from xpeft_tuning.mask_tuner import tune_profile
        from xpeft_tuning.settings import TuningSettings

        settings = TuningSettings(**asked)
        plm, bank = self._loaded()
        share = DeviceShare(self._setup["share"], finish=_finish(plm))

        def show(progress: TuningProgress) -> None:
            self._show(progress)
            share()

        return tune_profile(plm, bank, dataset, settings, show)

    def _loaded(self) -> Model:
        if self._model is None:
            from xpeft_server.model.banks.source import open_bank
            from xpeft_server.model.plm import load_plm

            from .assembly import choose_device

            plm = load_plm(self._setup["plm"], device=choose_device(self._setup["device"]))
            self._model = Model(plm, open_bank(self._setup["bank"], plm.facts))
        return self._model

    def _show(self, progress: TuningProgress) -> None:
        now = time.monotonic()
        if now - self._told >= _TOLD_SECONDS:
            self._told = now
            fields = ("epoch", "epochs", "step", "steps", "loss")
            self._answer(Frame({"progress": {field: getattr(progress, field) for field in fields}}))

    def _deliver(self, tuned: TunedProfile, task: Task) -> None:
        from xpeft_profiles import write_profile_file

        self._answer(Frame({"report": _report(tuned, task)}, write_profile_file(tuned.profile)))

    def _fail(
        self, error: Exception | str, *, code: str, type_: str, param: str | None = None, last: bool = False
    ) -> None:
        failure = {"message": str(error), "code": code, "type": type_, "param": param}
        self._answer(Frame({"failure": failure, "last": last}))

    def _answer(self, frame: Frame) -> None:
        self._answers.write(encode_frame(frame))
        self._answers.flush()


def _dataset(job: dict[str, Any]) -> Dataset:
    from xpeft_tuning.dataset import Dataset, Example

    examples = tuple(Example(**row) for row in job["examples"])
    return Dataset(examples, tuple(job["labels"]), completions=job["completions"])


def _report(tuned: TunedProfile, task: Task) -> dict[str, Any]:
    """`TuningResultBody` of the API, but for the version."""
    scores = {"train": tuned.train, "held_out": tuned.held_out, "head_alone": tuned.head_alone}

    def measured(name: str, majority: float | None = None) -> dict[str, Any]:
        return {part: score and getattr(score, name) for part, score in scores.items()} | {"majority": majority}

    return {
        "rows": {"train": tuned.train.rows, "held_out": tuned.held_out.rows if tuned.held_out else 0},
        "accuracy": measured("accuracy", tuned.majority) if task == "classify" else None,
        "correlation": measured("correlation") if task == "regress" else None,
        "loss": measured("loss"),
        "epoch": tuned.epoch,
        "cut": tuned.cut,
    }


def _finish(plm: Plm) -> Any:
    """A function that waits for the device; on CPU there is nothing to wait for."""
    import torch

    return torch.cuda.synchronize if plm.device.type == "cuda" else lambda: None


def _pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Take stdin and stdout for the frames, and leave nothing and stderr in their places."""
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return asked, answers


def _die_with(parent: int) -> None:
    """Be killed when the parent ends, however it ends. Signals to the process group are ignored: the server decides."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    asked, answers = _pipes()
    _die_with(int(sys.argv[1]))
    first = read_frame(asked)
    if first is None:
        return
    setup = first.message
    configure_logging(setup["log_format"], setup["log_level"], sys.stderr, process="tuning worker")
    if not setup["device"].startswith("cuda"):
        run_when_idle()
    worker = Worker(setup, answers)
    # A server that is gone is no error of this process.
    with contextlib.suppress(BrokenPipeError):
        while (frame := read_frame(asked)) is not None:
            if not worker.tune(frame.message):
                break
    sys.stderr.flush()
    # Unloading torch can take seconds.
    os._exit(0)


if __name__ == "__main__":
    main()
