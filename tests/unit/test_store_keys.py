from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from blip.errors import ConfigError, InternalError, InvalidRequest, PayloadTooLarge
from blip.store.keys import ROLES, Keys
from blip.store.records import pack_map, unpack_map

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@given(names)
def test_what_one_script_touches_lies_in_one_slot_of_a_cluster(mesh: str) -> None:
    keys = Keys(mesh)
    of_the_mesh = [keys.epoch, *(keys.members(role) for role in ROLES)]
    assert len({key_slot(key.encode()) for key in of_the_mesh}) == 1


@given(names, names)
def test_results_spread_by_task_not_by_mesh(mesh: str, task: str) -> None:
    slot = key_slot(Keys(mesh).result(task).encode())
    assert slot == key_slot(task.encode())


@given(names, names, names, names)
def test_no_two_things_share_a_key(mesh: str, other: str, task: str, another: str) -> None:
    def all_of(name: str) -> list[str]:
        keys = Keys(name)
        return [
            keys.epoch,
            *(keys.members(role) for role in ROLES),
            *(keys.changes(role) for role in ROLES),
            *(keys.result(each) for each in {task, another}),
        ]

    everything = [key for name in {mesh, other} for key in all_of(name)]
    assert len(everything) == len(set(everything))
    assert all(key.startswith("blip:") for key in everything)  # what the documented ACL allows


@pytest.mark.parametrize("mesh", ["", "a b", "a:b", "a{b", "a}b", "-a", "é", "a\n", "x" * 64])
def test_a_mesh_name_that_would_break_keys_is_a_config_error(mesh: str) -> None:
    with pytest.raises(ConfigError, match="is not a mesh name") as caught:
        Keys(mesh)
    assert caught.value.param == "mesh"


@pytest.mark.parametrize("task", ["", "a}b", "a{b", "a:b", "../x", "a b", "a\n", "x" * 129])
def test_a_task_id_that_would_break_keys_is_the_clients_error(task: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a task id") as caught:
        Keys("m").result(task)
    assert caught.value.param == "task_id"


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="node, broker, gateway"):
        Keys("m").members("client")  # type: ignore[arg-type]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), plain, max_size=6))
def test_a_map_survives_the_way_there_and_back(value: dict[str, object]) -> None:
    assert unpack_map(pack_map(value, limit=1 << 20, what="it"), what="it") == value


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_map_or_a_clear_error(data: bytes) -> None:
    told = None
    try:
        value = unpack_map(data, what="the record of node a")
    except InternalError as error:
        told = error
    if told is None:
        assert all(isinstance(key, str) for key in value)
    else:
        assert told.message.startswith("the record of node a in Redis is corrupt: ")
        assert told.hint


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81\xa1a", b"\x80\x80", b"\x93\x01\x02\x03"])
def test_bytes_that_are_no_map_are_corrupt(data: bytes) -> None:
    with pytest.raises(InternalError, match="it in Redis is corrupt"):
        unpack_map(data, what="it")


@pytest.mark.parametrize(
    "value",
    [{1: "a"}, {"a": {1: 2}}, {"a": object()}, {"a": 2**64}, {"a": {"b": {None: 1}}}, {b"a": 1}],
)
def test_what_could_not_be_read_again_is_not_stored(value: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=r"^it cannot be stored: "):
        pack_map(value, limit=1 << 20, what="it")


def test_a_map_over_its_limit_says_both_sizes() -> None:
    with pytest.raises(PayloadTooLarge, match="it is 105 bytes; at most 104 are stored") as caught:
        pack_map({"a": "x" * 100}, limit=104, what="it")
    assert caught.value.details == {"size": 105, "limit": 104}
    assert len(pack_map({"a": "x" * 100}, limit=105, what="it")) == 105
