"""A mail server that writes down what it was given, one line of JSON for each mail: smtp_server.py PORT FILE."""
import asyncio
import base64
import json
import sys

from aiosmtpd.controller import Controller


class WriteDown:
    async def handle_DATA(self, _server, _session, envelope):
        raw = base64.b64encode(envelope.original_content).decode()
        mail = {"sender": envelope.mail_from, "recipients": envelope.rcpt_tos, "raw": raw}
        with open(sys.argv[2], "a") as file:
            file.write(json.dumps(mail) + "\n")
        return "250 2.0.0 Ok: queued as ORACLE1"


Controller(WriteDown(), hostname="127.0.0.1", port=int(sys.argv[1])).start()
asyncio.new_event_loop().run_forever()
