"""What a tuning job can be refused with or fail of; the API's one table turns the refusals into answers.

JobsError
├── TuningOff             this server takes no jobs
├── InvalidTuning         a field of the request cannot be used (``param`` names it)
│   └── TooManyRows       more examples than one job may have
├── JobNotFound
├── JobFinished           it is over, so it cannot be cancelled
└── JobFailure            what a job that was accepted ends with
    ├── TuningFailed      the worker says why
    └── WorkerDied        it said nothing
"""

from __future__ import annotations


class JobsError(Exception):
    """Root of the tree. ``code`` is the wire's stable word for it, ``param`` the field it is about."""

    code = "jobs_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class TuningOff(JobsError):
    code = "tuning_off"


class InvalidTuning(JobsError):
    code = "invalid_field"


class TooManyRows(InvalidTuning):
    code = "too_many_rows"


class JobNotFound(JobsError):
    code = "job_not_found"


class JobFinished(JobsError):
    code = "job_finished"


class JobFailure(JobsError):
    """``type`` is the envelope's: whose fault it is."""

    type = "server_error"


class TuningFailed(JobFailure):
    def __init__(self, message: str, *, code: str, type: str, param: str | None = None) -> None:  # noqa: A002
        super().__init__(message, param=param)
        self.code = code
        self.type = type


class WorkerDied(JobFailure):
    code = "worker_died"
