"""What PyJWT reads in a token, if the key (SPKI, base64) signed it; else its complaint."""
import base64
import json
import sys

import jwt
from cryptography.hazmat.primitives.serialization import load_der_public_key

asked = json.load(sys.stdin)
key = load_der_public_key(base64.b64decode(asked["key"]))
try:
    said = jwt.decode_complete(
        asked["token"], key, algorithms=[asked["algorithm"]], audience=asked.get("audience"),
        options={"require": asked["require"]},
    )
    json.dump({"header": said["header"], "claims": said["payload"]}, sys.stdout)
except jwt.PyJWTError as error:
    json.dump({"error": repr(error)}, sys.stdout)
