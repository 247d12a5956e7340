"""The OpenAPI description of a server, made from the inputs and the task of its checkpoint."""

from __future__ import annotations

from typing import Any

from fusion_pl import __version__
from fusion_pl.processors import Processor
from fusion_pl.processors.features import FeatureProcessor
from fusion_pl.serve.examples import example_value
from fusion_pl.serve.requests import JSON, MULTIPART
from fusion_pl.serve.service import Service
from fusion_pl.serve.values import kind_of

ERRORS = {
    "400": "The connection was closed before the request was complete, it is not HTTP, or its header Host is refused.",
    "401": "The token is missing or wrong.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is neither JSON nor multipart.",
    "422": "The request is malformed.",
    "429": "Too many requests wait for an answer; Retry-After has the seconds after which to try again.",
    "503": "Too many connections are open.",
}


def openapi_document(service: Service) -> dict[str, Any]:
    """Return the description, whose examples can be sent as they are."""
    has_token = service.options.token is not None
    components: dict[str, Any] = {"schemas": _schemas(service)}
    if has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    public: dict[str, Any] = {"security": []} if has_token else {}
    info = _answer("Inputs, classes, task, versions and hash of the checkpoint.")
    ready = _answer("The model is loaded.")
    return {
        "openapi": "3.1.0",
        "info": {"title": "fusion-pl", "version": __version__, "description": "Predictions of one model."},
        "paths": {
            "/predict": {"post": _predict_operation(service)},
            "/explain": {"post": _explain_operation(service)},
            "/health": {"get": _operation("Whether the process answers", {"200": _answer("It does.")}) | public},
            "/ready": {
                "get": _operation("Whether predictions can be requested", {"200": ready, "503": _answer("Not yet.")})
                | public
            },
            "/info": {"get": _operation("What the model takes and returns", {"200": info} | _errors("400", "401"))},
            "/metrics": {
                "get": _operation(
                    "Metrics in the format of Prometheus",
                    {"200": {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
                    | _errors("400", "401"),
                )
            },
            **({"/drift": {"get": _drift_operation()}} if service.drift is not None else {}),
        },
        "components": components,
        **({"security": [{"token": []}]} if has_token else {}),
    }


def _operation(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": responses}


def _drift_operation() -> dict[str, Any]:
    page = {"200": {"description": "A page.", "content": {"text/html": {"schema": {"type": "string"}}}}}
    return _operation("The latest samples beside the validation samples", page | _errors("400", "401"))


def _answer(description: str) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": {"type": "object"}}}}


def _errors(*statuses: str) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": ERRORS[status], "content": content} for status in statuses}


def _predict_operation(service: Service) -> dict[str, Any]:
    example = _example(service)
    refs = {
        name: {"$ref": f"#/components/schemas/{name}"} for name in ("Samples", "Sample", "Predictions", "Prediction")
    }
    return {
        "summary": "Predict one sample or many",
        "description": "A sample may have any of the inputs. A sample that cannot be predicted has an error.",
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": {"anyOf": [refs["Samples"], refs["Sample"]]},
                    "examples": {
                        "one": {"value": example},
                        "many": {"value": {"samples": [example, *({name: example[name]} for name in example)]}},
                    },
                },
                MULTIPART: _parts(service),
            },
        },
        "responses": {
            "200": {
                "description": "One prediction per sample, in their order.",
                "content": {JSON: {"schema": {"anyOf": [refs["Predictions"], refs["Prediction"]]}}},
            },
            **_errors(*ERRORS),
        },
    }


def _explain_operation(service: Service) -> dict[str, Any]:
    example = _example(service)
    sample = {"schema": {"$ref": "#/components/schemas/Sample"}, "examples": {"one": {"value": example}}}
    parts = _parts(service)
    return {
        "summary": "Explain the prediction for one sample",
        "description": "Shapley values of its inputs, and its prediction without each of them.",
        "parameters": [
            _parameter(
                "target", {"enum": list(service.predictor.classes)}, "The explained class, not the predicted one."
            ),
            _parameter("evidence", {"type": "boolean"}, "Whether to add the effects of words, cells and windows."),
        ],
        "requestBody": {"required": True, "content": {JSON: sample, MULTIPART: parts}},
        "responses": {"200": _answer("The explanation, or an error."), **_errors(*ERRORS)},
    }


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _example(service: Service) -> dict[str, Any]:
    """Return a sample that can be sent as it is."""
    values = {name: example_value(processor) for name, processor in service.predictor.processors.items()}
    return {name: value for name, value in values.items() if value is not None}


def _parts(service: Service) -> dict[str, Any]:
    """Return the description of a multipart body, a part per input."""
    processors = service.predictor.processors
    parts = {name: _part_schema(processor, service) for name, processor in processors.items()}
    as_json = {name: {"contentType": JSON} for name, one in processors.items() if kind_of(one) in ("vector", "json")}
    return {
        "schema": {"type": "object", "properties": parts, "additionalProperties": False},
        **({"encoding": as_json} if as_json else {}),
    }


def _schemas(service: Service) -> dict[str, Any]:
    limits, processors = service.limits, service.predictor.processors
    inputs = {name: _input_schema(processor, service) for name, processor in processors.items()}
    numbers = {"type": ["object", "null"], "additionalProperties": {"type": ["number", "null"]}}
    names = {"type": ["array", "null"], "items": {"enum": list(service.predictor.classes)}}
    fields = {
        "id": {"type": "string", "description": "Position of the sample in the request."},
        "label": {"enum": [*service.predictor.classes, None]},
        "probability": {"type": ["number", "null"]},
        "labels": names,
        "probabilities": numbers,
        "set": names | {"description": "Classes of the prediction set."},
        "abstained": {"type": ["boolean", "null"]},
        "outlier_p_values": numbers,
        "weights": numbers | {"description": "Weight of each input, if the fusion head returns weights."},
        "error": {"type": ["string", "null"], "description": "Why there is no prediction."},
    }
    return {
        "Sample": {"type": "object", "properties": inputs, "additionalProperties": False, "minProperties": 1},
        "Samples": _list_schema("samples", "Sample", {"minItems": 1, "maxItems": limits.samples}),
        "Prediction": {
            "type": "object",
            "properties": {name: fields[name] for name in service.fields},
            "required": service.fields,
            "additionalProperties": False,
        },
        "Predictions": _list_schema("predictions", "Prediction", {}),
        "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
    }


def _list_schema(key: str, schema: str, sizes: dict[str, int]) -> dict[str, Any]:
    items = {"type": "array", "items": {"$ref": f"#/components/schemas/{schema}"}, **sizes}
    return {"type": "object", "properties": {key: items}, "required": [key], "additionalProperties": False}


def _input_schema(processor: Processor, service: Service) -> dict[str, Any]:
    kind = kind_of(processor)
    if kind == "text":
        return {"type": ["string", "null"], "maxLength": service.limits.characters}
    if isinstance(processor, FeatureProcessor):
        number = {"type": ["number", "null"]} if processor.has_flags else {"type": "number"}
        vector = {"type": "array", "items": number, "minItems": processor.features, "maxItems": processor.features}
        return {"anyOf": [vector, {"type": "array", "items": vector, "minItems": 1}, {"type": "null"}]}
    if kind == "json":
        return {}
    description = f"The content of a file ({kind}) as base64 or as a data URL."
    return {"type": ["string", "null"], "contentEncoding": "base64", "description": description}


def _part_schema(processor: Processor, service: Service) -> dict[str, Any]:
    kind = kind_of(processor)
    if kind in ("vector", "json"):
        return _input_schema(processor, service)
    if kind == "text":
        return {"type": "string"}
    return {"type": "string", "contentMediaType": "application/octet-stream", "description": f"A file: {kind}."}
