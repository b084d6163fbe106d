"""Every name that blip uses in Redis, in one place.

The part in braces is a Redis Cluster *hash tag*: all keys with the same tag live in the same slot,
so that one script may touch them together. What belongs to the mesh as a whole is tagged with the
mesh (small, one slot); what belongs to one task is tagged with the task (spreads over all slots).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from blip.errors import ConfigError, InvalidRequest

#: Who may be found through Redis.
Role = Literal["node", "broker", "gateway"]
ROLES: tuple[Role, ...] = get_args(Role)

# Neither colons (our separator) nor braces (the hash tag); both names also appear in URLs and logs.
_MESH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys and channels of one mesh.

    Raises :class:`~blip.errors.ConfigError` if ``mesh`` cannot be part of a key.
    """

    mesh: str

    def __post_init__(self) -> None:
        if not _MESH.fullmatch(self.mesh):
            raise ConfigError(
                f"mesh: {self.mesh!r} is not a mesh name",
                param="mesh",
                hint="Use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or "
                "digit.",
            )

    def members(self, role: Role) -> str:
        """Hash: id -> record, of everyone in that role; see :mod:`blip.store.discovery`."""
        if role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, not {role!r}")
        return f"blip:{{{self.mesh}}}:{role}s"

    def changes(self, role: Role) -> str:
        """Channel: a hint that :meth:`members` changed. Says nothing more, may be lost."""
        return f"{self.members(role)}:changes"

    @property
    def epoch(self) -> str:
        """String: the last broker epoch that was handed out."""
        return f"blip:{{{self.mesh}}}:epoch"

    @property
    def files(self) -> str:
        """Sorted set: id -> when it expires, of every file kept; see :mod:`blip.store.files`."""
        return f"blip:{{{self.mesh}}}:files"

    @property
    def files_sizes(self) -> str:
        """Hash: id -> bytes, of the same files."""
        return f"blip:{{{self.mesh}}}:files:sizes"

    @property
    def files_secret(self) -> str:
        """String: what the addresses of files are signed with."""
        return f"blip:{{{self.mesh}}}:files:secret"

    def result(self, task_id: str) -> str:
        """Hash: the terminal state of one task; see :mod:`blip.store.results`.

        Raises :class:`~blip.errors.InvalidRequest`: task ids come from URLs.
        """
        if not _TASK.fullmatch(task_id):
            raise InvalidRequest(f"{task_id[:140]!r} is not a task id", param="task_id")
        return f"blip:{self.mesh}:{{{task_id}}}:result"
