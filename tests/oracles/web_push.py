"""What http_ece reads in a Web Push message with the keys of a browser; else its complaint."""
import base64
import json
import sys

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec

asked = json.load(sys.stdin)
private, auth, body = (base64.b64decode(asked[name]) for name in ("private", "auth", "body"))
key = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())
try:
    plain = http_ece.decrypt(body, private_key=key, auth_secret=auth, version="aes128gcm")
    json.dump({"plain": plain.decode()}, sys.stdout)
except Exception as error:  # of several libraries
    json.dump({"error": repr(error)}, sys.stdout)
