"""What Python's own parser makes of a mail, and whether its DKIM signature holds against a DNS record."""
import base64
import json
import sys
from email import message_from_bytes, policy

import dkim

asked = json.load(sys.stdin)
raw = base64.b64decode(asked["raw"])
mail = message_from_bytes(raw, policy=policy.default)
parts = [part for part in mail.walk() if not part.is_multipart()]
json.dump(
    {
        "headers": [[name, str(value)] for name, value in mail.items()],
        "parts": [
            {
                "type": part.get_content_type(),
                "filename": part.get_filename(),
                "content": base64.b64encode(part.get_payload(decode=True)).decode(),
            }
            for part in parts
        ],
        "defects": [type(defect).__name__ for part in mail.walk() for defect in part.defects],
        "dkim": dkim.verify(raw, dnsfunc=lambda name, **_: asked["dns"].get(name.decode().rstrip("."), "").encode() or None),
    },
    sys.stdout,
)
