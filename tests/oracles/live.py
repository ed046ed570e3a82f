"""What the library `websockets` is shown on a socket: so many messages, or the status with which the upgrade was refused."""
import json
import sys

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

asked = json.load(sys.stdin)
try:
    with connect(asked["url"], open_timeout=20, additional_headers=asked.get("headers", {})) as socket:
        ponged = socket.ping().wait(20)
        shown = [json.loads(socket.recv(timeout=20)) for _ in range(asked["count"])]
    # The library raises unless the goodbye was said as the protocol has it.
    answer = {"shown": shown, "ponged": ponged, "code": socket.close_code}
except InvalidStatus as refusal:
    answer = {"refused": refusal.response.status_code}
json.dump(answer, sys.stdout)
