"""What is served is what the OpenAPI document says, for right and for wrong requests."""

from __future__ import annotations

import random
import re
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from northbound_client import BASE, H1, H4, LINK, TOKEN, Client, Request, WSGIApplication
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from ryu_apps.access import Access
from ryu_apps.northbound import NorthboundController
from ryu_apps.northbound.registry import ROUTES, openapi_document

STREAM = f"{BASE}/events"
"""Never ends, so it is not fuzzed."""
FUZZ = settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SENT = [
    (route.method, route.path, mode)
    for route in ROUTES
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if route.path != STREAM and (mode is GenerationMode.POSITIVE or route.query or route.body)
]
"""What can be sent: well-formed requests, and wrong ones where there is something to get wrong."""
REAL = {
    "link_id": [LINK, f"{H1}-0000000000000001.11", f"0000000000000004.11-{H4}"],
    "src": [H1, H4],
    "dst": [H1, H4],
    "pin_id": ["p1", "p2"],
}
"""Values that name something in the simulated network; random ones only ever find a 404."""


@pytest.fixture(scope="module")
def client() -> Client:
    return Client()


def judge(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    """Return what judges by a schema of the OpenAPI document."""
    whole = {**schema, "components": {"schemas": openapi_document()["components"]["schemas"]}}
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(whole, format_checker=checker)


def check(document: Any, schema: dict[str, Any]) -> None:
    """Hold a document against a schema of the OpenAPI document."""
    judge(schema).validate(document)


def test_the_document_is_valid_and_is_served(client: Client) -> None:
    document = client.get(f"{BASE}/openapi.json")
    validate(document)
    assert document == openapi_document()


def test_every_route_has_an_operation_and_only_writes_need_the_token() -> None:
    operations = {
        (method.upper(), path): operation
        for path, methods in openapi_document()["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        needs_token = operations[route.method, route.path]["security"] == [{"token": []}]
        assert needs_token == route.writes
        assert route.writes or route.method in ("GET", "POST")
    assert {
        route.method for route in ROUTES if route.method in ("PUT", "DELETE") and not route.writes
    } == set()


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/healthz", "/healthz"),
        (f"{BASE}/topology", f"{BASE}/topology"),
        (f"{BASE}/links", f"{BASE}/links"),
        (f"{BASE}/links/{LINK}", f"{BASE}/links/{{link_id}}"),
        (f"{BASE}/paths", f"{BASE}/paths"),
        (f"{BASE}/paths?src={H1}&dst={H4}", f"{BASE}/paths"),
        (f"{BASE}/effort", f"{BASE}/effort"),
        (f"{BASE}/pins", f"{BASE}/pins"),
        (f"{BASE}/alto/directory", f"{BASE}/alto/directory"),
        (f"{BASE}/alto/networkmap", f"{BASE}/alto/networkmap"),
        (f"{BASE}/alto/costmap/lossrate", f"{BASE}/alto/costmap/{{cost_metric}}"),
        ("/restconf/data/ietf-network:networks", "/restconf/data/ietf-network:networks"),
    ],
)
def test_real_answers_follow_the_document(client: Client, path: str, template: str) -> None:
    answer = client.ask(path)
    assert answer.status_int == 200
    content = openapi_document()["paths"][template]["get"]["responses"]["200"]["content"]
    check(answer.json, content[answer.content_type]["schema"])


@pytest.mark.parametrize(("method", "path"), [(route.method, route.path) for route in ROUTES])
def test_where_reads_need_the_token_nothing_is_told_without_it(method: str, path: str) -> None:
    api = SimpleNamespace(access=Access(token=TOKEN, reads_need_token=True))  # a handler would fail on it
    app = WSGIApplication()
    app.register(NorthboundController, api)
    request = Request.blank(re.sub(r"{\w+}", "x", path), method=method)
    answer = request.get_response(app)
    assert answer.status_int == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert answer.content_type == "application/problem+json"


def test_a_schema_refuses_what_breaks_it(client: Client) -> None:
    link = client.get(f"{BASE}/links/{LINK}")
    link["delay_s"]["reason"] = "known and unknown"
    with pytest.raises(jsonschema.ValidationError):
        check(link, {"$ref": "#/components/schemas/Link"})


# --- fuzzing


@pytest.fixture(scope="module")
def api(client: Client) -> Any:
    schema = schemathesis.openapi.from_wsgi(f"{BASE}/openapi.json", client.app)
    chance = random.Random(7)
    judges = {
        parameter["name"]: judge(parameter["schema"])
        for methods in openapi_document()["paths"].values()
        for operation in methods.values()
        for parameter in operation.get("parameters", ())
        if parameter["name"] in REAL
    }

    def is_wrong(name: str, value: object) -> bool:
        """Tell whether a value was made to be refused: then it stays."""
        return name in judges and not judges[name].is_valid(value)

    def make_real(context: Any, values: dict[str, Any] | None) -> dict[str, Any] | None:
        if not values:
            return values
        return {
            name: value
            if name not in REAL or is_wrong(name, value) or chance.random() < 0.5
            else chance.choice(REAL[name])
            for name, value in values.items()
        }

    schema.hook("map_path_parameters")(make_real)
    schema.hook("map_query")(make_real)
    return schema


@pytest.mark.parametrize(("method", "path", "mode"), SENT)
def test_no_request_breaks_the_controller_or_the_document(
    api: Any, method: str, path: str, mode: GenerationMode
) -> None:
    @FUZZ
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:  # that a host cannot have a path to itself is beyond a schema
        case.call_and_validate(
            headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=[positive_data_acceptance]
        )

    send()
