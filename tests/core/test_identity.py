"""Who answers, and what makes it somebody else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.identity import (
    SERVER_KEYS,
    SPAN,
    Change,
    Epochs,
    Identity,
    adapter_name,
    adapters,
    change,
    identify,
)
from tests.conftest import CORPUS

SECRETS = {
    "api_key": "sk-plain-secret",
    "admin_api_key": "sk-admin-secret",
    "watermark_key": "wm-secret",
    "watermark_key_b": "wm-b-secret",
    "watermark_config": {"key": "wm-config-secret"},
    "ssl_keyfile_password": "tls-secret",
}
UNRELATED = {
    **SECRETS,
    "launch_command": "python -m sglang.launch_server --api-key sk-plain-secret",
    "random_seed": 42,
    "startup_time": {"total": 12.5},
    "internal_states": [{"last_gen_throughput": 1.5}],
    "max_total_num_tokens": 81234,
    "max_req_input_len": 81228,
    "weight_version": "default",
    "host": "127.0.0.1",
    "port": 30000,
    "nccl_port": 31000,
    "dist_init_addr": None,
    "log_level": "info",
    "log_requests": False,
    "enable_metrics": False,
    "enable_lora": True,
    "lora_paths": [{"lora_name": "a", "lora_path": "/a"}],
    "max_loaded_loras": 4,
    "kv_events": None,
}
SERVER = {**dict.fromkeys(SERVER_KEYS, "x"), "speculative_algorithm": None, **UNRELATED}


def recorded(name: str) -> dict[str, Any]:
    """What a server said: the body of a recorded answer."""
    record = json.loads((CORPUS / f"{name}.json").read_bytes())
    body: dict[str, Any] = json.loads(record["response"]["body"])
    return body


INFO = recorded("get-model_info")
MODELS = recorded("get-v1-models")


def known(info: Any = None, server: Any = None, models: Any = None) -> Identity:
    who = identify(info, server, models)
    assert who
    return who


def mirrored(value: Any) -> Any:
    """An equal document with the keys of all objects in the other order."""
    if isinstance(value, dict):
        return {name: mirrored(member) for name, member in reversed(value.items())}
    return [mirrored(member) for member in value] if isinstance(value, list) else value


# Identity


def test_a_real_server() -> None:
    """The proxy would not know the model of any SGLang."""
    who = known(INFO, None, None)
    assert re.fullmatch("[0-9a-f]{32}", who.digest)
    assert (who.model, who.weight_version, who.incarnation) == ("tiny", "default", "")
    assert who == known(recorded("get-get_model_info"), None, MODELS)


def test_a_real_list_of_models() -> None:
    """A server without /model_info would never be answered for."""
    who = known(models=MODELS)
    assert re.fullmatch("[0-9a-f]{32}", who.digest)
    assert (who.model, who.weight_version, who.incarnation) == ("tiny", None, "")
    assert who.digest != known(INFO).digest


@pytest.mark.parametrize(
    ("info", "model"),
    [
        ({"model_path": "p", "served_model_name": "s"}, "s"),
        ({"model_path": "p"}, "p"),
        ({"model_path": "p", "served_model_name": None}, "p"),
        ({"model_path": "p", "served_model_name": ""}, "p"),
        ({"served_model_name": "s"}, "s"),
    ],
)
def test_the_name_for_people(info: dict[str, Any], model: str) -> None:
    """`/cache/info` would not tell which model it speaks of."""
    assert known(info).model == model


@pytest.mark.parametrize("version", [None, 7, ["v"]])
def test_odd_weight_version(version: Any) -> None:
    """A label that is no text would be compared with the label of answers."""
    assert known({"model_path": "p", "weight_version": version}).weight_version is None


@pytest.mark.parametrize(
    ("info", "models"),
    [
        (None, None),
        ({}, None),
        ([], []),
        ("tiny", "tiny"),
        ({"error": "starting"}, None),
        ({"model_path": 3}, None),
        (None, {}),
        (None, {"data": []}),
        (None, {"data": {}}),
        (None, {"data": ["tiny"]}),
        (None, {"data": [{}]}),
        (None, {"data": [{"id": None}]}),
        (None, {"data": [{"id": ""}]}),
        (None, {"data": [{"id": "tiny"}, {"object": "model"}]}),
        ({"model_path": "p", "big": 2**70}, None),
    ],
)
def test_who_does_not_name_a_model_is_unknown(info: Any, models: Any) -> None:
    """All servers that are not ready, say, would count as one and the same model."""
    assert identify(info, SERVER, models) is None


def test_nesting_without_end() -> None:
    """An odd document would stop the proxy, with the document in the error."""
    deep: Any = "x"
    for _ in range(600):
        deep = [deep]
    assert identify({"model_path": "p", "x": deep}, None, None) is None
    assert identify(INFO, {"dtype": deep}, None) is None


@pytest.mark.parametrize("info", [None, {}, "busy", {"detail": "Not Found"}])
def test_models_count_where_info_is_missing(info: Any) -> None:
    """A gateway that answers every path would hide which model is behind it."""
    assert known(info, None, MODELS) == known(models=MODELS)


def test_order_of_keys_does_not_matter() -> None:
    """Each start of a server could empty the cache."""
    assert known(mirrored(INFO), mirrored(SERVER), None) == known(INFO, SERVER, None)
    assert known(models=mirrored(MODELS)) == known(models=MODELS)


@pytest.mark.parametrize("name", INFO)
def test_each_member_of_info_matters(name: str) -> None:
    """Answers of another model would be given."""
    other = {**INFO, name: "other"}
    assert known(other).digest != known(INFO).digest
    if name not in ("model_path", "served_model_name"):
        del other[name]
        assert known(other).digest != known(INFO).digest


@pytest.mark.parametrize("name", [*sorted(SERVER_KEYS), "speculative_algorithm", "speculative_new"])
def test_each_chosen_key_matters(name: str) -> None:
    """Answers from before another setting would be given."""
    values = (None, True, 1, "other", {"a": [1]})
    digests = {known(INFO, {**SERVER, name: value}).digest for value in values}
    without = {key: value for key, value in SERVER.items() if key != name}
    assert len(digests | {known(INFO, without).digest}) == 6


@pytest.mark.parametrize("name", [*UNRELATED, "unheard_of", "lora_backend", "_speculative_x"])
def test_other_keys_do_not_matter(name: str) -> None:
    """A restart, or another port or key, would empty the cache."""
    without = {key: value for key, value in SERVER.items() if key != name}
    for server in (without, {**SERVER, name: "other"}, {**SERVER, name: None}):
        assert known(INFO, server).digest == known(INFO, SERVER).digest


def test_server_info_matters() -> None:
    """A server that hides its settings would share answers with one that does not."""
    assert known(INFO, SERVER).digest != known(INFO).digest
    assert known(INFO, {}).digest == known(INFO).digest == known(INFO, "odd").digest


def test_digests_do_not_change() -> None:
    """A model keeps its name, and with it its stored answers, whatever library reads what its
    server says."""
    said = {"model_path": "m", "scale": [1e16, 1e-5, 1e-7, 0.5], "é": None}
    assert known(said).digest == "29a6a59fd7e80aecde7b27742b48df2b"


def test_values_do_not_run_into_each_other() -> None:
    """A document could be made up to have another one's name."""
    info, server = {"model_path": "p"}, {"dtype": "x"}
    assert known({**info, **server}).digest != known(info, server).digest


def test_models_lasting_members() -> None:
    """`created` is the time of the request: every poll would find another model."""
    (entry,) = MODELS["data"]
    later = {**entry, "created": 1, "permission": [{"id": "random"}]}
    assert known(models={"object": "list", "data": [later]}) == known(models=MODELS)
    for name in entry.keys() - {"created"}:
        other = {"data": [{**entry, name: "other"}]}
        assert known(models=other).digest != known(models=MODELS).digest


def test_models_in_any_order() -> None:
    """A gateway that lists its models as they come would be another one each time."""
    one, other = {"id": "a", "root": "x"}, {"id": "b", "root": "y"}
    first, second = known(models={"data": [one, other]}), known(models={"data": [other, one]})
    assert first.digest == second.digest != known(models={"data": [one]}).digest
    assert (first.model, second.model) == ("a", "b")


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ({"startup_time": {"a": 1.5, "b": 2}}, {"startup_time": {"b": 2, "a": 1.5}}, True),
        ({"startup_time": {"a": 1.5}}, {"startup_time": {"a": 1.6}}, False),
        ({"random_seed": 1}, {"random_seed": 2}, False),
        ({"random_seed": 0}, {}, False),
        ({"random_seed": None, "startup_time": None}, {}, True),
        ({"random_seed": 1, "port": 1}, {"random_seed": 1, "port": 2}, True),
        (None, {}, True),
    ],
)
def test_incarnation(before: Any, after: Any, is_same: bool) -> None:
    """A restart would go unseen, or every poll would look like one."""
    one, other = known(INFO, before), known(INFO, after)
    assert (one.incarnation == other.incarnation) is is_same
    assert one.digest == other.digest


@pytest.mark.parametrize("server", [None, {}, {"startup_time": None}, "odd", []])
def test_unknown_incarnation(server: Any) -> None:
    """A server that does not tell would seem to have restarted."""
    assert known(INFO, server).incarnation == ""
    assert known(models=MODELS, server=server).incarnation == ""


def test_no_secret_is_kept() -> None:
    """An API key would stand in the log, or in the journal."""
    who = known(INFO, SERVER)
    shown = repr(who) + "".join(str(getattr(who, name)) for name in Identity.__slots__)
    assert "secret" not in shown
    of_program = {"engine", "version", "streams_usage"}
    of_model = {"digest", "model", "weight_version", "incarnation"}
    assert set(Identity.__slots__) == of_program | of_model
    assert not SECRETS.keys() & SERVER_KEYS


# Changes

MODEL_ROUTES = [
    "/update_weights_from_disk",
    "/update_weights_from_tensor",
    "/update_weights_from_distributed",
    "/update_weights_from_ipc",
    "/update_weights",
    "/update_weights_from_the_moon",
    "/begin_weight_update",
    "/end_weight_update",
    "/update_weight_version",
    "/weights_checker",
    "/set_internal_state",
    "/release_memory_occupation",
    "/resume_memory_occupation",
]
ADAPTER_ROUTES = [
    "/load_lora_adapter",
    "/load_lora_adapter_from_tensors",
    "/unload_lora_adapter",
    "/v1/load_lora_adapter",
]
CHANGES = [
    *((path, Change.MODEL) for path in MODEL_ROUTES),
    *((path, Change.ADAPTER) for path in ADAPTER_ROUTES),
]

SPELLINGS: list[Callable[[str], str]] = [
    lambda path: path,
    lambda path: f"{path}/",
    lambda path: f"{path}//",
    lambda path: f"/{path}",
    lambda path: f"/mounted/here{path}",
    lambda path: f"/mounted/{path}",
    lambda path: f"http://host:30000{path}",
    lambda path: f"{path}?a=/flush_cache",
    lambda path: f"{path}/?a=b?c",
    lambda path: f"{path}#x",
    lambda path: path.replace("_", "%5f"),
    lambda path: path.replace("/", "%2F"),
    lambda path: "/" + "".join(f"%{ord(char):02X}" for char in path[1:]),
    lambda path: path.replace("_", "%255f"),
    lambda path: f"{path}/.",
    lambda path: f"{path}/x/..",
    lambda path: f"/x/..{path}",
    lambda path: f"{path};v=1",
    lambda path: f"{path}%20",
    lambda path: path.upper(),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("path", "what"), CHANGES)
def test_requests_that_change_answers(
    path: str, what: Change, spelling: Callable[[str], str]
) -> None:
    """Answers of the old weights would be given for the new ones."""
    for method in ("POST", "PUT", "GET", "DELETE", "head"):
        assert change(method, spelling(path)) is what


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
@pytest.mark.parametrize(("path", "what"), CHANGES)
def test_questions_about_a_route_change_nothing(path: str, what: Change, method: str) -> None:
    """A browser's preflight would empty the cache."""
    assert change(method, path) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "*",
        "//",
        "/generate",
        "/v1/chat/completions",
        "/model_info",
        "/flush_cache",
        "/flush_cache?timeout=60",
        "/generate?x=/update_weights_from_disk",
        "/generate#/update_weights_from_disk",
        "/generate%3Fx",
        "/weights_checkers",
        "/get_weights_by_name",
        "/init_weights_update_group",
        "/destroy_weights_update_group",
        "/send_weights_to_remote_instance",
        "/abort_request",
        "/pause_generation",
        "/continue_generation",
        "/hicache/storage-backend/clear",
        "/%zz",
        "/%",
        "/\udcff\ud800",
    ],
)
def test_other_requests_change_nothing(path: str) -> None:
    """Flushing the server's own cache, say, would empty this one."""
    assert change("POST", path) is None


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"lora_name":"a","lora_path":"/p"}', "a"),
        (b'{"lora_name":"a b:c"}', "a b:c"),
        ('{"lora_name":"é"}'.encode(), "é"),
        (b'{"lora_name":""}', None),
        (b'{"lora_name":null}', None),
        (b'{"lora_name":["a"]}', None),
        (b'{"lora_path":"a"}', None),
        (b"{}", None),
        (b"[]", None),
        (b'"lora_name"', None),
        (b"", None),
        (b"{", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_adapter_name(body: bytes, name: str | None) -> None:
    """The wrong adapter's answers would be kept."""
    assert adapter_name(body) == name


@pytest.mark.parametrize(
    ("call", "names"),
    [
        ({"text": "x"}, set()),
        ({"lora_path": "a"}, {"a"}),
        ({"lora_path": ["a", None, "b", 3]}, {"a", "b"}),
        ({"lora_path": None}, set()),
        ({"lora_path": ""}, set()),
        ({"model": "base:a"}, {"a"}),
        ({"model": "base: a "}, {"a"}),
        ({"model": "base:a", "lora_path": "b"}, {"a", "b"}),
        ({"model": "base:a:b"}, {"a:b"}),
        ({"model": "s3://host:9000/base:a"}, {"a"}),
        ({"model": "a"}, {"a"}),
        ({"model": "base:"}, set()),
        ({"model": None}, set()),
        ({"model": 3}, set()),
    ],
)
def test_adapters_of_a_call(call: dict[str, Any], names: set[str]) -> None:
    """An answer of an adapter's former weights would be given."""
    assert names <= adapters(orjson.dumps(call))


@pytest.mark.parametrize(
    "content", [b'{"text":"\\"lora_path\\""}', b'["model"]', b'{"prompt":"a:b"}', b"{}"]
)
def test_calls_without_adapters(content: bytes) -> None:
    """Text of a prompt would count as an adapter."""
    assert adapters(content) == set()


def test_a_model_of_colons() -> None:
    """A made-up name would fill the memory with its endings."""
    assert len(adapters(orjson.dumps({"model": ":a" * 100_000}))) < 20


# Epochs

X, Y, Z = (Identity(letter * 32, letter, None, "") for letter in "xyz")


def test_nothing_has_changed() -> None:
    """Models would be told apart by what never happened to them."""
    epochs = Epochs()
    assert epochs.of(X.digest) == 0
    assert epochs.adapters_token == epochs.adapter_epochs(["a"]) == ""
    assert re.fullmatch("[0-9a-f]{32}", epochs.fingerprint(X))
    assert len({X.digest, epochs.fingerprint(X), epochs.fingerprint(Y)}) == 3
    assert epochs.fingerprint(X) == Epochs().fingerprint(X)


def test_a_fingerprint_is_of_digest_and_epoch() -> None:
    """Another start of the server would empty the cache, although nothing changed."""
    epochs = Epochs()
    same = Identity(X.digest, "other", "v", "another process")
    assert epochs.fingerprint(X) == epochs.fingerprint(same)


def test_a_changed_model_is_another_one() -> None:
    """Answers of the old weights would be given, or those of a model that did not change lost."""
    epochs = Epochs()
    seen = {epochs.fingerprint(X)}
    others = epochs.fingerprint(Y)
    for _ in range(3):
        epochs.raise_model(X.digest)
        seen.add(epochs.fingerprint(X))
    assert len(seen) == 4
    assert epochs.fingerprint(Y) == others
    assert (epochs.of(X.digest), epochs.of(Y.digest), epochs.last) == (3, 0, 3)


def test_a_change_of_an_unknown_model_is_one_of_all() -> None:
    """A change before the model is known would be forgotten."""
    epochs = Epochs()
    epochs.raise_model(X.digest)
    before = {epochs.fingerprint(who) for who in (X, Y, Z)}
    epochs.raise_model(None)
    assert not before & {epochs.fingerprint(who) for who in (X, Y, Z)}
    epochs.raise_model(X.digest)
    assert (epochs.of(X.digest), epochs.of(Y.digest)) == (3, 2)
    assert epochs.models.keys() == {X.digest}


def test_adapters_are_apart_from_models() -> None:
    """Loading an adapter would empty the cache of the base model."""
    epochs = Epochs()
    before = epochs.fingerprint(X)
    epochs.raise_adapter("a")
    first, all_first = epochs.adapter_epochs({"a", "b"}), epochs.adapters_token
    epochs.raise_adapter("a")
    assert epochs.fingerprint(X) == before
    assert first and first != epochs.adapter_epochs({"a", "b"})
    assert all_first and all_first != epochs.adapters_token
    assert epochs.adapter_epochs({"b"}) == ""
    assert epochs.adapter_epochs([]) == ""


def test_adapter_epochs_are_a_set() -> None:
    """One call would have several keys."""
    epochs = Epochs()
    for name in ("b", "a", 'a","b'):
        epochs.raise_adapter(name)
    assert epochs.adapter_epochs(["a", "b"]) == epochs.adapter_epochs(["b", "a", "b", "c"])
    assert epochs.adapter_epochs(["a", "b"]) != epochs.adapter_epochs(['a","b'])
    assert epochs.adapters_token == epochs.adapter_epochs(epochs.adapters)


@pytest.mark.parametrize(
    ("changed", "after", "are_new", "are_kept"),
    [
        ([], X, [], [X, Y, Z]),
        ([X], X, [X], [Y, Z]),
        # Y was never changed, so what is stored of it was given by the weights that it has.
        ([X], Y, [], [X, Y, Z]),
        ([Y], Y, [Y], [X, Z]),
        ([X, Y], Y, [Y], [X, Z]),
    ],
)
def test_restarts(
    changed: list[Identity],
    after: Identity,
    are_new: list[Identity],
    are_kept: list[Identity],
) -> None:
    """Weights that were updated in the last process would be taken for those that were loaded;
    or a restart would empty the cache of a model that never changed."""
    epochs = Epochs()
    for who in changed:
        epochs.raise_model(who.digest)
    former = {who: epochs.fingerprint(who) for who in (X, Y, Z)}
    epochs.restarted(after)
    assert [who for who in (X, Y, Z) if epochs.fingerprint(who) != former[who]] == are_new
    assert [who for who in (X, Y, Z) if epochs.fingerprint(who) == former[who]] == are_kept


def test_a_restart_after_a_change_of_all() -> None:
    """Weights from before and after would share a name."""
    epochs = Epochs()
    epochs.raise_model(None)
    before = epochs.fingerprint(X)
    epochs.restarted(X)
    assert epochs.fingerprint(X) != before


def test_a_restart_forgets_no_adapter() -> None:
    """An adapter that was loaded again would be taken for the former one."""
    epochs = Epochs()
    epochs.raise_adapter("a")
    before = epochs.adapter_epochs("a"), epochs.adapters_token, epochs.fingerprint(X)
    epochs.restarted(X)
    assert epochs.adapter_epochs("a") not in ("", before[0])
    assert epochs.adapters_token != before[1]
    assert epochs.fingerprint(X) == before[2]


def test_a_restart_of_what_never_changed_is_nothing() -> None:
    """A change that was refused could not be undone, or the state be written for nothing."""
    epochs = Epochs()
    epochs.restarted(Y)
    assert epochs == Epochs()


def full() -> Epochs:
    epochs = Epochs()
    epochs.raise_model(X.digest)
    epochs.raise_model(None)
    epochs.raise_model(Y.digest)
    epochs.raise_adapter("a")
    return epochs


def test_numbers_of_ones_own() -> None:
    """Two proxies would give one number to two things."""
    one, two = Epochs(salt=3), Epochs(salt=4)
    for epochs in (one, two):
        epochs.raise_model("x")
    assert (one.of("x"), two.of("x")) == (SPAN + 3, SPAN + 4)
    one.raise_model("x")
    assert one.of("x") == 2 * SPAN + 3
    assert Epochs.from_json(one.as_json()).of("x") == one.of("x")


KNOWN = {"last": 5, "floor": 1, "m:x": 4, "a:a": 5}


@pytest.mark.parametrize(
    ("mine", "theirs", "merged"),
    [
        (KNOWN, KNOWN, KNOWN),
        ({}, KNOWN, KNOWN),
        (KNOWN, {**KNOWN, "m:x": 9, "last": 9}, {**KNOWN, "m:x": 9, "last": 9}),
        (KNOWN, {"last": 5, "floor": 1, "a:a": 5}, {"last": 5, "floor": 1, "a:a": 5}),
        ({**KNOWN, "m:x": 7, "last": 7}, {**KNOWN, "m:x": 9, "last": 9},
         {**KNOWN, "m:x": 9, "last": 9}),
        ({**KNOWN, "m:x": 9, "last": 9}, {**KNOWN, "m:x": 7, "last": 7},
         {**KNOWN, "m:x": 9, "last": 9}),
        ({**KNOWN, "m:y": 6, "last": 6}, {**KNOWN, "a:b": 7, "last": 7},
         {**KNOWN, "m:y": 6, "a:b": 7, "last": 7}),
        # Where nothing is left of what they knew.
        (KNOWN, {}, {"last": 5}),
    ],
)  # fmt: skip
def test_merge(mine: dict[str, int], theirs: dict[str, int], merged: dict[str, int]) -> None:
    """Of two changes one would be lost."""
    epochs = Epochs()
    epochs.merge({}, mine)
    assert epochs.merge(KNOWN if mine else {}, theirs) is (mine != merged)
    assert epochs.as_numbers() == merged
    assert Epochs.from_json(epochs.as_json()) == epochs


@pytest.mark.parametrize("epochs", [Epochs(), full()], ids=["empty", "full"])
def test_epochs_are_kept(epochs: Epochs) -> None:
    """A restart of the proxy would bring old answers back."""
    again = Epochs.from_json(orjson.loads(orjson.dumps(epochs.as_json())))
    assert again == epochs
    for who in (X, Y, Z):
        assert again.fingerprint(who) == epochs.fingerprint(who)
    assert again.adapters_token == epochs.adapters_token


def test_what_was_kept_does_not_follow() -> None:
    """What is being written would change meanwhile."""
    epochs = full()
    kept = epochs.as_json()
    again = Epochs.from_json(kept)
    again.raise_adapter("b")
    epochs.raise_model("b")
    assert kept == full().as_json()


GOOD: dict[str, Any] = {"last": 3, "floor": 1, "models": {"x": 2}, "adapters": {"a": 3}}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "epochs",
        {},
        *({k: v for k, v in GOOD.items() if k != name} for name in GOOD),
        {**GOOD, "last": -1},
        {**GOOD, "floor": True},
        {**GOOD, "last": 3.0},
        {**GOOD, "last": "3"},
        {**GOOD, "last": 2},
        {**GOOD, "floor": 4},
        {**GOOD, "floor": None},
        {**GOOD, "models": []},
        {**GOOD, "models": {"x": "1"}},
        {**GOOD, "models": {"x": -1}},
        {**GOOD, "models": {"x": 4}},
        {**GOOD, "adapters": None},
        {**GOOD, "adapters": {"a": None}},
        {**GOOD, "adapters": {"a": 4}},
    ],
)
def test_broken_epochs_are_refused(value: Any) -> None:
    """A number would be given twice, or the proxy would stop with a riddle."""
    with pytest.raises(ValueError, match=r"^epochs: "):
        Epochs.from_json(value)


def test_epochs_of_a_later_version() -> None:
    """A member that is new would make the state of the others unreadable."""
    assert Epochs.from_json({**GOOD, "new": 1}) == Epochs(3, 1, {"x": 2}, {"a": 3})
