"""What a worker's part of the tree must look like: pure functions from operations to states.

A state is plain JSON: `names` maps a path to the number of its object, to "dir" or to "link:TARGET"; `objects` maps a
number to a recipe (steps that make the content), a mode and extended attributes. Worker and checker apply the same
operations, so that the only thing that has to survive a crash outside the mount is the journal of operations.
"""

from __future__ import annotations

import copy
import random
from functools import lru_cache
from typing import Any

State = dict[str, Any]
Operation = dict[str, Any]
Recipe = list[list[Any]]

POOL_BYTES = 48 << 20
"""Random bytes that contents are cut from; more than the largest file, so that no content repeats inside itself."""
MODE_NEW = 0o644


@lru_cache(maxsize=1)
def _pool() -> bytes:
    return random.Random(0).randbytes(POOL_BYTES)


def content(seed: int, length: int) -> memoryview:
    """`length` bytes that differ from those of any other seed at nearly every place, without making them anew."""
    start = random.Random(seed).randrange(POOL_BYTES - length)
    return memoryview(_pool())[start : start + length]


def materialise(recipe: Recipe) -> bytearray:
    """The bytes that a recipe makes."""
    made = bytearray()
    for step in recipe:
        if step[0] == "put":
            _, offset, seed, length = step
            if len(made) < offset:
                made.extend(bytes(offset - len(made)))
            made[offset : offset + length] = content(seed, length)
        else:
            size = step[1]
            del made[size:]
            made.extend(bytes(size - len(made)))
    return made


def size_of(recipe: Recipe) -> int:
    """Length of what `materialise` would make."""
    size = 0
    for step in recipe:
        size = max(size, step[1] + step[3]) if step[0] == "put" else step[1]
    return size


def is_sparse(recipe: Recipe) -> bool:
    """True when some bytes were never written, so that the charged bytes may be fewer than the size."""
    size = 0
    for step in recipe:
        if step[0] == "put":
            if step[1] > size:
                return True
            size = max(size, step[1] + step[3])
        elif step[1] > size:
            return True
        else:
            size = step[1]
    return False


def empty_state() -> State:
    """A worker that has done nothing."""
    return {"names": {}, "objects": {}, "next": 1}


def _new_object(state: State, recipe: Recipe) -> str:
    number = str(state["next"])
    state["next"] += 1
    state["objects"][number] = {"recipe": recipe, "mode": MODE_NEW, "xattrs": {}}
    return number


def _drop_unnamed(state: State) -> None:
    alive = set(state["names"].values())
    state["objects"] = {number: value for number, value in state["objects"].items() if number in alive}


def apply(state: State, operation: Operation) -> State:
    """The state after `operation` has been acknowledged; `state` itself is left alone."""
    after = copy.deepcopy(state)
    _APPLY[operation["kind"]](after, operation)
    _drop_unnamed(after)
    return after


def _put(state: State, op: Operation) -> None:
    """A closed file: new under its name, or with new content if the name was there (O_TRUNC)."""
    recipe = [["put", 0, op["seed"], op["size"]]]
    if op["name"] in state["names"]:
        state["objects"][state["names"][op["name"]]]["recipe"] = recipe
    else:
        state["names"][op["name"]] = _new_object(state, recipe)


def _store_open(state: State, op: Operation) -> None:
    """Written under a temporary name, renamed before close: the object under the final name is a new one."""
    state["names"][op["name"]] = _new_object(state, [["put", 0, op["seed"], op["size"]]])


def _edit(state: State, op: Operation) -> None:
    target = state["objects"][state["names"][op["name"]]]
    target["recipe"] = [*target["recipe"], *op["steps"]]


def _rename(state: State, op: Operation) -> None:
    old, new = op["name"], op["to"]
    if state["names"][old] == state["names"].get(new) and state["names"][old] != "dir":
        return  # two links of one file: POSIX says that nothing happens
    for name in list(state["names"]):
        if name == old or name.startswith(old + "/"):
            state["names"][new + name[len(old) :]] = state["names"].pop(name)


def _remove(state: State, op: Operation) -> None:
    del state["names"][op["name"]]


def _link(state: State, op: Operation) -> None:
    state["names"][op["to"]] = state["names"][op["name"]]


def _mkdir(state: State, op: Operation) -> None:
    state["names"][op["name"]] = "dir"


def _symlink(state: State, op: Operation) -> None:
    state["names"][op["name"]] = f"link:{op['target']}"


def _chmod(state: State, op: Operation) -> None:
    state["objects"][state["names"][op["name"]]]["mode"] = op["mode"]


def _setxattr(state: State, op: Operation) -> None:
    state["objects"][state["names"][op["name"]]]["xattrs"][op["key"]] = op["value"]


_APPLY = {
    "put": _put,
    "store_open": _store_open,
    "edit": _edit,
    "rename": _rename,
    "unlink": _remove,
    "rmdir": _remove,
    "link": _link,
    "mkdir": _mkdir,
    "symlink": _symlink,
    "chmod": _chmod,
    "setxattr": _setxattr,
}
