"""Requests that change the model."""

from __future__ import annotations

from collections.abc import Callable

from sglang_cached_addon.core.updates import Change, adapter_name, change, ends_calls
from tests.tables import each

MODEL_ROUTES = [
    "/update_weights_from_disk", "/update_weights_from_tensor", "/update_weights_from_distributed",
    "/update_weights_from_ipc", "/update_weights", "/update_weights_from_the_moon",
    "/begin_weight_update", "/end_weight_update", "/update_weight_version", "/weights_checker",
    "/set_internal_state", "/release_memory_occupation", "/resume_memory_occupation",
]  # fmt: skip
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
    lambda path: path, lambda path: f"{path}/", lambda path: f"{path}//", lambda path: f"/{path}",
    lambda path: f"/mounted/here{path}", lambda path: f"/mounted/{path}",
    lambda path: f"http://host:30000{path}", lambda path: f"{path}?a=/flush_cache",
    lambda path: f"{path}/?a=b?c", lambda path: f"{path}#x", lambda path: path.replace("_", "%5f"),
    lambda path: path.replace("/", "%2F"),
    lambda path: "/" + "".join(f"%{ord(char):02X}" for char in path[1:]),
    lambda path: path.replace("_", "%255f"), lambda path: f"{path}/.", lambda path: f"{path}/x/..",
    lambda path: f"/x/..{path}", lambda path: f"{path};v=1", lambda path: f"{path}%20",
    lambda path: path.upper(),
]  # fmt: skip


@each("spelling", SPELLINGS)
@each(("path", "what"), CHANGES)
def test_requests_that_change_answers(
    path: str, what: Change, spelling: Callable[[str], str]
) -> None:
    """Each request that changes a model or an adapter is seen, however its path is spelled."""
    for method in ("POST", "PUT", "GET", "DELETE", "head"):
        assert change(method, spelling(path)) is what


@each("spelling", SPELLINGS)
def test_requests_that_end_calls(spelling: Callable[[str], str]) -> None:
    """Each request that may end calls of others is seen, however its path is spelled."""
    for path in ("/abort_request", "/pause_generation"):
        assert ends_calls(spelling(path))
    for path in ("/v1/messages", "/continue_generation", "/flush_cache", "/abort_requests"):
        assert not ends_calls(spelling(path))


@each("method", ["HEAD", "OPTIONS"])
@each(("path", "what"), CHANGES)
def test_questions_about_a_route_change_nothing(path: str, what: Change, method: str) -> None:
    """HEAD and OPTIONS change nothing."""
    assert change(method, path) is None


@each(
    "path",
    [
        "", "/", "*", "//", "/generate", "/v1/chat/completions", "/model_info", "/flush_cache",
        "/flush_cache?timeout=60", "/generate?x=/update_weights_from_disk",
        "/generate#/update_weights_from_disk", "/generate%3Fx", "/weights_checkers",
        "/get_weights_by_name", "/init_weights_update_group", "/destroy_weights_update_group",
        "/send_weights_to_remote_instance", "/abort_request", "/pause_generation",
        "/continue_generation", "/hicache/storage-backend/clear", "/%zz", "/%", "/\udcff\ud800",
    ],
)  # fmt: skip
def test_other_requests_change_nothing(path: str) -> None:
    """Other requests change nothing."""
    assert change("POST", path) is None


@each(
    ("body", "name"),
    [
        (b'{"lora_name":"a","lora_path":"/p"}', "a"), (b'{"lora_name":"a b:c"}', "a b:c"),
        ('{"lora_name":"é"}'.encode(), "é"), (b'{"lora_name":""}', None),
        (b'{"lora_name":null}', None), (b'{"lora_name":["a"]}', None), (b'{"lora_path":"a"}', None),
        (b"{}", None), (b"[]", None), (b'"lora_name"', None), (b"", None), (b"{", None),
        (b"\xff", None), (b"[" * 100_000, None),
    ],
)  # fmt: skip
def test_adapter_name(body: bytes, name: str | None) -> None:
    """The adapter is the one that the body names, or any."""
    assert adapter_name(body) == name
