"""Who answers, and what makes it somebody else."""

from __future__ import annotations

import json
import re
from typing import Any

from sglang_cached_addon.core.identity import Identity, identify
from sglang_cached_addon.core.server_keys import SERVER_KEYS
from tests.conftest import CORPUS
from tests.tables import each

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
    "random_seed": 42, "startup_time": {"total": 12.5}, "kv_events": None,
    "internal_states": [{"last_gen_throughput": 1.5}], "weight_version": "default",
    "max_total_num_tokens": 81234, "max_req_input_len": 81228, "host": "127.0.0.1", "port": 30000,
    "nccl_port": 31000, "dist_init_addr": None, "log_level": "info", "log_requests": False,
    "enable_metrics": False, "enable_lora": True, "max_loaded_loras": 4,
    "lora_paths": [{"lora_name": "a", "lora_path": "/a"}],
}  # fmt: skip
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
    """A real SGLang is identified."""
    who = known(INFO, None, None)
    assert re.fullmatch("[0-9a-f]{32}", who.digest)
    assert (who.model, who.weight_version, who.incarnation) == ("tiny", "default", "")
    assert who == known(recorded("get-get_model_info"), None, MODELS)


def test_a_real_list_of_models() -> None:
    """A server that only lists its models is identified."""
    who = known(models=MODELS)
    assert re.fullmatch("[0-9a-f]{32}", who.digest)
    assert (who.model, who.weight_version, who.incarnation) == ("tiny", None, "")
    assert who.digest != known(INFO).digest


@each(
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
    """The name for people is the served one, or the path. A weight version is text, or none."""
    for version in (None, 7, ["v"]):
        who = known({**info, "weight_version": version})
        assert (who.model, who.weight_version) == (model, None)


@each(
    ("info", "models"),
    [
        (None, None), ({}, None), ([], []), ("tiny", "tiny"), ({"error": "starting"}, None),
        ({"model_path": 3}, None), (None, {}), (None, {"data": []}), (None, {"data": {}}),
        (None, {"data": ["tiny"]}), (None, {"data": [{}]}), (None, {"data": [{"id": None}]}),
        (None, {"data": [{"id": ""}]}), (None, {"data": [{"id": "tiny"}, {"object": "model"}]}),
        ({"model_path": "p", "big": 2**70}, None),
    ],
)  # fmt: skip
def test_who_does_not_name_a_model_is_unknown(info: Any, models: Any) -> None:
    """A server that names no model is not identified."""
    assert identify(info, SERVER, models) is None


def test_nesting_without_end() -> None:
    """A document that is nested without end identifies nobody, and raises nothing."""
    deep: Any = "x"
    for _ in range(600):
        deep = [deep]
    assert identify({"model_path": "p", "x": deep}, None, None) is None
    assert identify(INFO, {"dtype": deep}, None) is None


@each("info", [None, {}, "busy", {"detail": "Not Found"}])
def test_models_count_where_info_is_missing(info: Any) -> None:
    """The list of models counts where `/model_info` names none."""
    assert known(info, None, MODELS) == known(models=MODELS)


@each("name", INFO)
def test_each_member_of_info_matters(name: str) -> None:
    """Each member of `/model_info` matters."""
    other = {**INFO, name: "other"}
    assert known(other).digest != known(INFO).digest
    if name not in ("model_path", "served_model_name"):
        del other[name]
        assert known(other).digest != known(INFO).digest


@each("name", [*sorted(SERVER_KEYS), "speculative_algorithm", "speculative_new"])
def test_each_chosen_key_matters(name: str) -> None:
    """Each setting that an answer depends on matters."""
    values = (None, True, 1, "other", {"a": [1]})
    digests = {known(INFO, {**SERVER, name: value}).digest for value in values}
    without = {key: value for key, value in SERVER.items() if key != name}
    assert len(digests | {known(INFO, without).digest}) == 6


@each("name", [*UNRELATED, "unheard_of", "lora_backend", "_speculative_x"])
def test_other_keys_do_not_matter(name: str) -> None:
    """Other settings, as ports and keys, do not matter."""
    without = {key: value for key, value in SERVER.items() if key != name}
    for server in (without, {**SERVER, name: "other"}, {**SERVER, name: None}):
        assert known(INFO, server).digest == known(INFO, SERVER).digest


def test_server_info_matters() -> None:
    """A server that hides its settings is another one than with them."""
    assert known(INFO, SERVER).digest != known(INFO).digest
    assert known(INFO, {}).digest == known(INFO).digest == known(INFO, "odd").digest


def test_digests_do_not_change() -> None:
    """A model keeps its name, and with it its stored answers, whatever library reads what its
    server says."""
    said = {"model_path": "m", "scale": [1e16, 1e-5, 1e-7, 0.5], "é": None}
    settings = dict.fromkeys(sorted(SERVER_KEYS), 1)
    assert known(said, settings).digest == "8d35d3bb0e8f639c79c354bcddb73d7a", (
        "another set of settings counts"
    )
    assert known(said).digest == "29a6a59fd7e80aecde7b27742b48df2b"


def test_values_do_not_run_into_each_other() -> None:
    """Values do not run into each other."""
    info, server = {"model_path": "p"}, {"dtype": "x"}
    assert known({**info, **server}).digest != known(info, server).digest


def test_models_lasting_members() -> None:
    """Members that differ from poll to poll do not matter; the lasting ones do."""
    (entry,) = MODELS["data"]
    later = {**entry, "created": 1, "permission": [{"id": "random"}]}
    assert known(models={"object": "list", "data": [later]}) == known(models=MODELS)
    for name in entry.keys() - {"created"}:
        other = {"data": [{**entry, name: "other"}]}
        assert known(models=other).digest != known(models=MODELS).digest


def test_order_does_not_matter() -> None:
    """Neither the order of members matters, nor that of the models."""
    assert known(mirrored(INFO), mirrored(SERVER), None) == known(INFO, SERVER, None)
    assert known(models=mirrored(MODELS)) == known(models=MODELS)
    one, other = {"id": "a", "root": "x"}, {"id": "b", "root": "y"}
    first, second = known(models={"data": [one, other]}), known(models={"data": [other, one]})
    assert first.digest == second.digest != known(models={"data": [one]}).digest
    assert (first.model, second.model) == ("a", "b")


@each(
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
    """Another process is another incarnation of the same model, and the same process is not."""
    one, other = known(INFO, before), known(INFO, after)
    assert (one.incarnation == other.incarnation) is is_same
    assert one.digest == other.digest


@each("server", [None, {}, {"startup_time": None}, "odd", []])
def test_unknown_incarnation(server: Any) -> None:
    """A server that does not tell has no incarnation."""
    assert known(INFO, server).incarnation == ""
    assert known(models=MODELS, server=server).incarnation == ""


def test_no_secret_is_kept() -> None:
    """No secret is kept of what a server says."""
    who = known(INFO, SERVER)
    shown = repr(who) + "".join(str(getattr(who, name)) for name in Identity.__slots__)
    assert "secret" not in shown
    of_program = {"engine", "version", "streams_usage", "greedy", "fuses_scores", "streams_apart",
                  "has_workers", "keeps_answers"}  # fmt: skip
    of_model = {"digest", "model", "weight_version", "incarnation", "dates_prompts"}
    assert set(Identity.__slots__) == of_program | of_model
    assert not SECRETS.keys() & SERVER_KEYS


def test_items_in_one_sequence() -> None:
    """A server that puts all items of a call for scores into one sequence is another one; one that
    does not keeps its name, whether it says so or not."""
    plain = known(INFO, SERVER)
    assert known(INFO, {**SERVER, "enable_mis": False}) == plain and not plain.server.fuses_scores
    fused = known(INFO, {**SERVER, "enable_mis": True})
    assert fused.server.fuses_scores and fused.digest != plain.digest


@each(
    ("info", "server", "keeps", "dates"),
    [
        (INFO, {"enable_response_store": False}, False, False),
        (INFO, {"enable_response_store": True}, True, False),
        (INFO, {}, True, False), (INFO, None, True, False),
        ({**INFO, "model_type": "gpt_oss"}, {"enable_response_store": False}, False, True),
        ({n: v for n, v in INFO.items() if n != "model_type"}, {}, True, True),
        (None, None, True, True),
    ],
)  # fmt: skip
def test_responses(info: Any, server: Any, keeps: bool, dates: bool) -> None:
    """A server keeps no answers if it says so; and prompts have no date if their model is known,
    and none of those that have."""
    found = known(info, server, MODELS).server
    assert (found.keeps_answers, found.dates_prompts) == (keeps, dates)
