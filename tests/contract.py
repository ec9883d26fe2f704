"""The JSON objects of the command line, checked against their schemas and against themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

_SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "schemas").glob("*.json")}
_REGISTRY = Registry().with_resources([(schema["$id"], Resource.from_contents(schema)) for schema in _SCHEMAS.values()])


def check_document(command: str, document: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON object of a command, after checking it."""
    Draft202012Validator.check_schema(_SCHEMAS[command])
    Draft202012Validator(_SCHEMAS[command], registry=_REGISTRY).validate(document)
    runs = {"run": [document], "demo": [document], "quality": []}.get(command, document.get("runs", []))
    if command == "sync" and document["run"] is not None:
        runs = [document["run"]]
    for run in runs:
        tiles = run["tiles"]
        assert tiles["done"] + tiles["failed"] + tiles["pending"] + tiles["absent"] == tiles["total"]
        assert tiles["reused"] <= tiles["done"]
        assert run["annotated"] == sum((run["counts"] or {}).values()) <= run["voxels"]
    return document
