"""The request that Twilio's own client makes for a message; nothing is sent."""
import json
import logging
import sys

from twilio.http import HttpClient
from twilio.http.response import Response
from twilio.rest import Client

asked = json.load(sys.stdin)


class Captured(HttpClient):
    def request(self, method, url, params=None, data=None, headers=None, auth=None, **_):
        self.seen = {"method": method, "url": url, "form": data, "auth": list(auth), "headers": dict(headers)}
        return Response(201, json.dumps({"sid": "SM00000000000000000000000000000000"}))


captured = Captured(logging.getLogger(), False)
client = Client(asked["account"], asked["token"], http_client=captured)
client.messages.create(to=asked["to"], from_=asked["from"], body=asked["body"], status_callback=asked["callback"])
json.dump(captured.seen, sys.stdout)
