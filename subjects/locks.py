"""Image locks: two jobs never write one image, whatever their ids.

A scheduler takes the lock before it puts a job into its lane, and gives it back when the job has ended.
"""

import hashlib
import posixpath

import msgspec

from subjects.spec import JobId, PoolName


class ImageLock(msgspec.Struct, frozen=True, kw_only=True):
    """Which job may write an image, by the image's path on the hosts of its pool."""

    path: str
    pool: PoolName
    job_id: JobId


def lock_of(pool: str, path: str, job_id: str) -> ImageLock:
    """The lock that a job needs for a path. Two spellings of one path are one image."""
    return ImageLock(path=posixpath.normpath(path), pool=pool, job_id=job_id)


def lock_key(lock: ImageLock) -> str:
    """The lock's key in its bucket: a path may hold what a key cannot, so it is hashed."""
    return hashlib.sha256(f"{lock.pool}\0{lock.path}".encode()).hexdigest()[:40]
