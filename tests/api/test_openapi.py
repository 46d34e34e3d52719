"""The OpenAPI document: of these routes and no others, and of the fields that the parsers know."""

from typing import Any

import httpx
import pytest

from headrace.wire.openai_requests import CHAT_FIELDS, COMPLETION_FIELDS
from headrace.wire.openapi.document import SCHEMAS
from headrace.wire.openapi.openai_bodies import FIELDS
from headrace.wire.openapi.operations import OPERATIONS
from headrace.wire.refusals import HINTS, NOT_HONOURED
from headrace.wire.tgi_requests import PARAMETERS
from tests.api.conftest import Start
from tests.api.fakes import FakeEngine, app_of


@pytest.fixture
def document(start: Start) -> Any:
    return httpx.get(f"{start(FakeEngine()).url}/openapi.json", timeout=60).json()


def test_every_route_is_described_and_nothing_else(document: Any) -> None:
    served = {(route.method, route.path) for route in app_of(FakeEngine()).routes}
    assert served == set(OPERATIONS)
    assert served == {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}


def test_open_routes_are_open(document: Any) -> None:
    for route in app_of(FakeEngine()).routes:
        assert ("security" not in document["paths"][route.path][route.method.lower()]) == route.open, route.path


def test_every_reference_leads_somewhere(document: Any) -> None:
    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    found = references(document)
    assert found <= {f"#/components/schemas/{name}" for name in (*SCHEMAS, "ModelName", "TokenId")}
    assert len(found) > 10


def test_ids_are_unique(document: Any) -> None:
    ids = [each["operationId"] for methods in document["paths"].values() for each in methods.values()]
    assert len(set(ids)) == len(ids)


def test_the_schemas_have_the_fields_of_the_parsers() -> None:
    extra = set(NOT_HONOURED) | set(HINTS)
    assert set(SCHEMAS["Chat"]["properties"]) == CHAT_FIELDS | extra
    assert set(SCHEMAS["Completion"]["properties"]) == COMPLETION_FIELDS | extra
    assert set(SCHEMAS["TgiGenerate"]["properties"]["parameters"]["properties"]) == PARAMETERS
    assert FIELDS.keys() >= CHAT_FIELDS | COMPLETION_FIELDS
