"""Profiles: what they are, how they travel, where they are kept."""

from __future__ import annotations

from .errors import (
    BankMismatch,
    CursorInvalid,
    PreconditionFailed,
    ProfileInvalid,
    ProfileStoreError,
    RecordDamaged,
    SourceInvalid,
    StoreUnavailable,
    StoreUrlInvalid,
    TooManyJobs,
    TooManyProfiles,
)
from .file.batch import FileRecord, read_file_batch
from .file.reader import read_profile_file
from .file.writer import write_profile_file
from .geometry import BankGeometry
from .jobs.record import UNFINISHED, JobKey, JobRecord, JobStatus, new_job_id
from .jobs.store import JobPage, JobStore, StoredJob
from .memory.store import MemoryStore
from .names import RESERVED, ProfileKey, check_name, check_new_name
from .profile import Profile
from .record.batch import write_file_batch
from .record.reader import decode_record
from .record.writer import encode_record
from .redis.store import RedisStore
from .sqlite.store import SqliteStore
from .store import KeyedRecord, ListPage, Match, ProfileListing, ProfileStore, PutOutcome, StoredProfile
from .store_url import open_store

__all__ = [
    "RESERVED",
    "UNFINISHED",
    "BankGeometry",
    "BankMismatch",
    "CursorInvalid",
    "FileRecord",
    "JobKey",
    "JobPage",
    "JobRecord",
    "JobStatus",
    "JobStore",
    "KeyedRecord",
    "ListPage",
    "Match",
    "MemoryStore",
    "PreconditionFailed",
    "Profile",
    "ProfileInvalid",
    "ProfileKey",
    "ProfileListing",
    "ProfileStore",
    "ProfileStoreError",
    "PutOutcome",
    "RecordDamaged",
    "RedisStore",
    "SourceInvalid",
    "SqliteStore",
    "StoreUnavailable",
    "StoreUrlInvalid",
    "StoredJob",
    "StoredProfile",
    "TooManyJobs",
    "TooManyProfiles",
    "check_name",
    "check_new_name",
    "decode_record",
    "encode_record",
    "new_job_id",
    "open_store",
    "read_file_batch",
    "read_profile_file",
    "write_file_batch",
    "write_profile_file",
]
