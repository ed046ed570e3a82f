"""A mail server that writes down what it was given, one line of JSON for each mail: smtp_server.py PORT FILE [MODE CERTIFICATE].

MODE is `starttls` (nothing is taken before the upgrade) or `tls` (encrypted from the first byte).
"""
import asyncio
import base64
import json
import ssl
import sys

from aiosmtpd.controller import Controller


class WriteDown:
    async def handle_DATA(self, server, _session, envelope):
        raw = base64.b64encode(envelope.original_content).decode()
        is_encrypted = server.transport.get_extra_info("ssl_object") is not None
        mail = {"sender": envelope.mail_from, "recipients": envelope.rcpt_tos, "raw": raw, "tls": is_encrypted}
        with open(sys.argv[2], "a") as file:
            file.write(json.dumps(mail) + "\n")
        return "250 2.0.0 Ok: queued as ORACLE1"


def encryption():
    if len(sys.argv) < 4:
        return {}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[4])
    return {"ssl_context": context} if sys.argv[3] == "tls" else {"tls_context": context, "require_starttls": True}


class Server(Controller):
    def _trigger_server(self):
        """The library's own client would start the server, but does not trust the test's certificate. The first real client starts it."""
        if "ssl_context" not in encryption():
            super()._trigger_server()


Server(WriteDown(), hostname="127.0.0.1", port=int(sys.argv[1]), **encryption()).start()
asyncio.new_event_loop().run_forever()
