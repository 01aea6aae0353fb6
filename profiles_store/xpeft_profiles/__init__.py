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
from .file_batch import FileRecord, read_file_batch
from .file_reader import read_profile_file
from .file_writer import write_profile_file
from .geometry import BankGeometry
from .job_record import UNFINISHED, JobKey, JobRecord, JobStatus, new_job_id
from .job_store import JobPage, JobStore, StoredJob
from .memory_store import MemoryStore
from .names import RESERVED, ProfileKey, check_name, check_new_name
from .profile import Profile
from .record_batch import write_file_batch
from .record_reader import decode_record
from .record_writer import encode_record
from .redis_store import RedisStore
from .sqlite_store import SqliteStore
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
