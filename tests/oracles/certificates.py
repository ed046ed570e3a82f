"""Makes an authority and certificates of it in a folder: ca.pem, server.pem, client.pem, and stranger.pem of another one."""
import datetime
import ipaddress
import json
import pathlib
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

folder = pathlib.Path(json.load(sys.stdin)["folder"])
now = datetime.datetime.now(datetime.timezone.utc)


def named(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def made(name, signer=None):
    key = ec.generate_private_key(ec.SECP256R1())
    issuer, signing = (named(name), key) if signer is None else signer
    builder = x509.CertificateBuilder().subject_name(named(name)).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=7))
    builder = builder.add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    builder = builder.add_extension(authority, critical=False)
    if signer is not None:
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = builder.add_extension(here, critical=False)
    return builder.sign(signing, hashes.SHA256()), key


def pem(certificate, key=None):
    form = serialization.Encoding.PEM
    text = certificate.public_bytes(form)
    if key is not None:
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        text += key.private_bytes(form, pkcs8, plain)
    return text


authority, signing = made("an authority")
other, other_signing = made("another authority")
(folder / "ca.pem").write_bytes(pem(authority))
for file, signer in [
    ("server", (authority.subject, signing)),
    ("client", (authority.subject, signing)),
    ("stranger", (other.subject, other_signing)),
]:
    (folder / f"{file}.pem").write_bytes(pem(*made(file, signer)))
json.dump({}, sys.stdout)
