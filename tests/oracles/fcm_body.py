"""Where a body of messages:send departs from the schema that Google publishes of FCM v1."""
import json
import pathlib
import sys

import googleapiclient
import jsonschema

documents = pathlib.Path(googleapiclient.__file__).parent / "discovery_cache/documents"
published = json.loads((documents / "fcm.v1.json").read_text())["schemas"]


def strict(schema):
    """Google's own dialect as JSON Schema, with nothing allowed beside what is named."""
    if "$ref" in schema:
        return {"$ref": "#/definitions/" + schema["$ref"]}
    kept = {name: schema[name] for name in ("type", "enum") if name in schema and schema[name] != "any"}
    if "items" in schema:
        kept["items"] = strict(schema["items"])
    if "properties" in schema:
        kept["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        kept["additionalProperties"] = False
    if "additionalProperties" in schema:
        kept["additionalProperties"] = strict(schema["additionalProperties"])
    return kept


schema = {"$ref": "#/definitions/SendMessageRequest", "definitions": {n: strict(s) for n, s in published.items()}}
faults = jsonschema.Draft7Validator(schema).iter_errors(json.load(sys.stdin))
json.dump({"faults": [f"{fault.json_path}: {fault.message}" for fault in faults]}, sys.stdout)
