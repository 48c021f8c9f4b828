"""Folders that only this user can change.

Their files are executed, or trusted to be this user's own.
"""

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
    """Create ``folder`` and its missing parents, accessible to this user only.

    Existing folders are not changed.

    Raises:
        OSError: it cannot be created, or is a file.
    """
    if not folder.parent.is_dir():
        make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def who_else_writes(path: Path) -> str:
    """Describe who else could change or replace the file or folder ``path``; "" if nobody could.

    It must belong to this user, and every folder above it to this user or the system, all without
    write permission for others. In a folder with the sticky bit (/tmp, /dev/shm), others can add
    files but neither rename nor remove them. A group whose only member is this user does not count
    as others.

    Raises:
        OSError: ``path`` does not exist.
    """
    if sys.platform == "win32":
        return ""
    resolved = path.resolve(strict=True)
    if resolved.stat().st_uid != os.geteuid():
        return f"{resolved} belongs to somebody else"
    if _others_write(resolved.stat()):
        return f"others can write to {resolved} (chmod go-w)"
    # Check the folders above a symbolic link too, which could be pointed elsewhere.
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
    """Whether ``group`` is this user's private group, without other members.

    Many systems give each user a group of the same name.
    """
    try:
        name, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}
