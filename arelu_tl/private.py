"""Folders that nobody but this user can change: what lies in them is executed, or taken for what this user put there."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

if sys.platform != "win32":
    import grp
    import pwd

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> None:
    """Make ``folder`` and whatever is missing above it, for this user alone; what is there stays as it is.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    if not folder.parent.is_dir():
        make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def who_else_writes(path: Path) -> str:
    """Who else could change the file or folder ``path``, or put another in its place, in words; "" where nobody could.

    It must be this user's own, and every folder above it this user's or the system's, all without write permission for others;
    in a folder with the sticky bit (/tmp, /dev/shm) others can add, but neither rename nor remove. A group that is this
    user's alone is nobody else.

    Raises:
        OSError: ``path`` is not there.
    """
    if sys.platform == "win32":
        return ""
    resolved = path.resolve(strict=True)
    if resolved.stat().st_uid != os.geteuid():
        return f"{resolved} belongs to somebody else"
    if _others_write(resolved.stat()):
        return f"others can write to {resolved} (chmod go-w)"
    # Also above a link, which could be pointed elsewhere.
    for above in dict.fromkeys([*resolved.parents, *path.absolute().parents]):
        status = above.stat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{above} belongs to somebody else"
        if _others_write(status) and not status.st_mode & stat.S_ISVTX:
            return f"others can write to {above} (chmod go-w)"
    return ""


def _others_write(status: os.stat_result) -> bool:
    group_alone = status.st_mode & _OTHERS_WRITE == stat.S_IWGRP
    return bool(status.st_mode & _OTHERS_WRITE) and not (group_alone and _own_group(status.st_gid))


def _own_group(group: int) -> bool:
    """Whether it is the group of this user's name that many systems give each user, and nobody has joined it."""
    try:
        name, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}
