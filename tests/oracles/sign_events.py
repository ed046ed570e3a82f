"""Signs events as their providers do: with Twilio's own validator, with a key whose signatures SendGrid's own verifier takes, and
messages of SNS with a certificate that OpenSSL made."""
import base64
import datetime
import json
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization as form
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from sendgrid import EventWebhook
from twilio.request_validator import RequestValidator

asked = json.load(sys.stdin)


def pem(key):
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()).decode()


def load(text):
    return form.load_pem_private_key(text.encode(), None)


def twilio():
    validator = RequestValidator(asked["token"])
    return {"signature": validator.compute_signature(asked["url"], dict(asked["params"]))}


def sendgrid_key():
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
    return {"key": pem(key), "public": base64.b64encode(public).decode()}


def sendgrid():
    body, key = asked["body"], load(asked["key"])
    signature = base64.b64encode(key.sign((asked["timestamp"] + body).encode(), ec.ECDSA(hashes.SHA256()))).decode()
    verifier = EventWebhook(asked["public"])
    return {"signature": signature, "verified": verifier.verify_signature(body, signature, asked["timestamp"])}


def sns_key():
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    with open(asked["path"], "wb") as file:
        file.write(made.sign(key, hashes.SHA256()).public_bytes(form.Encoding.PEM))
    return {"key": pem(key)}


def sns():
    message = asked["message"]
    names = ["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"]
    text = "".join(f"{name}\n{message[name]}\n" for name in names if name in message)
    kind = hashes.SHA1() if message["SignatureVersion"] == "1" else hashes.SHA256()
    return {"signature": base64.b64encode(load(asked["key"]).sign(text.encode(), padding.PKCS1v15(), kind)).decode()}


json.dump(globals()[asked["do"]](), sys.stdout)
