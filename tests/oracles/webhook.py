"""What the Python library of Standard Webhooks says to a request: its body as it was read, or the complaint."""
import base64
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

asked = json.load(sys.stdin)
body = base64.b64decode(asked["body"])
headers = asked["headers"]


def symmetric():
    try:
        return {"read": Webhook(asked["secret"]).verify(body, headers)}
    except WebhookVerificationError as complaint:
        return {"refused": str(complaint)}


def asymmetric():
    # The library knows version 1 only; the specification says what version 1a signs.
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(asked["public_key"].removeprefix("whpk_")))
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    for signature in headers["webhook-signature"].split(" "):
        version, _, value = signature.partition(",")
        if version == "v1a":
            try:
                key.verify(base64.b64decode(value), signed)
                return {"read": json.loads(body)}
            except InvalidSignature:
                pass
    return {"refused": "no signature of version 1a fits"}


json.dump(asymmetric() if "public_key" in asked else symmetric(), sys.stdout)
