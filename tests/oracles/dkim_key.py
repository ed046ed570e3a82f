"""Writes a private key as OpenSSL would, and says what DNS has to say about it."""
import base64
import json
import sys

from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

asked = json.load(sys.stdin)
kind = asked["kind"]
key = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else rsa.generate_private_key(65537, 2048)
shape = form.PrivateFormat.TraditionalOpenSSL if kind == "rsa-pkcs1" else form.PrivateFormat.PKCS8
with open(asked["path"], "wb") as file:
    file.write(key.private_bytes(form.Encoding.PEM, shape, form.NoEncryption()))
if kind == "ed25519":
    public = key.public_key().public_bytes(form.Encoding.Raw, form.PublicFormat.Raw)
    record = "v=DKIM1; k=ed25519; p="
else:
    public = key.public_key().public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
    record = "v=DKIM1; k=rsa; p="
json.dump({"record": record + base64.b64encode(public).decode()}, sys.stdout)
