"""The OpenAPI document: it describes the server, and requests made from it find no answer that it does not describe."""

import json
from urllib.parse import quote

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis, which 'dev' has")

_SLOW = ("/v1/images", "/v1/images/stream", "/v1/images/generations")


def test_every_request_has_an_example_and_every_error_its_form(client):
    document = client.get("/openapi.json").json()
    for path in _SLOW:
        operation = document["paths"][path]["post"]
        [media] = operation["requestBody"]["content"].values()
        body = document["components"]["schemas"][media["schema"]["$ref"].rpartition("/")[2]]
        assert body["examples"]
        for status in ("401", "413", "415", "422", "429"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Error"}
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_made_from_the_schema_is_answered_with_a_failure(client, mode):
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    found = []
    for operation in (each.ok() for each in schema.get_all_operations()):
        if mode == "negative" and operation.method == "get":
            continue  # there is nothing that could be wrong

        @hypothesis.given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        @hypothesis.settings(max_examples=8, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        def ask(case):
            nonlocal found
            content, headers = None, {}
            if case.media_type is not None:
                content, headers = json.dumps(case.body, default=repr).encode(), {"content-type": case.media_type}
            path = quote(case.formatted_path, safe="/%")
            answer = client.request(case.method, path, content=content, headers=headers)
            found += [answer.status_code]
            assert answer.status_code < 500, (case, answer.text)

        ask()
    assert len(found) >= 20
    assert (200 if mode == "positive" else 422) in found
