"""A stand-in for Apple over the HTTP/2 of another project: apns_server.py PORT FILE KEY [CERTIFICATE CA]

KEY is the public key of provider tokens (PEM). With a CERTIFICATE it speaks TLS, and clients of CA need no token.
What is taken goes into FILE, one line of JSON each."""
import asyncio
import json
import ssl
import sys
import time

import jwt
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded

port, file = int(sys.argv[1]), sys.argv[2]
with open(sys.argv[3]) as opened:
    KEY = opened.read()
tls = None
if len(sys.argv) > 4:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=sys.argv[5])
    tls.load_cert_chain(sys.argv[4])
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.set_alpn_protocols(["h2"])


def judge(headers):
    if tls is None:
        token = headers.get("authorization", "").removeprefix("bearer ")
        try:
            claims = jwt.decode(token, KEY, algorithms=["ES256"], options={"require": ["iss", "iat"]})
        except jwt.PyJWTError:
            return 403, "InvalidProviderToken"
        if time.time() - claims["iat"] > 3600:
            return 403, "ExpiredProviderToken"
        if jwt.get_unverified_header(token).get("kid") is None:
            return 403, "InvalidProviderToken"
    return (400, "MissingTopic") if "apns-topic" not in headers else (200, None)


async def serve(reader, writer):
    connection = H2Connection(config=H2Configuration(client_side=False, header_encoding="utf-8"))
    connection.initiate_connection()
    writer.write(connection.data_to_send())
    streams = {}
    while data := await reader.read(65536):
        for event in connection.receive_data(data):
            if isinstance(event, RequestReceived):
                streams[event.stream_id] = (dict(event.headers), bytearray())
            elif isinstance(event, DataReceived):
                streams[event.stream_id][1].extend(event.data)
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                headers, body = streams.pop(event.stream_id)
                status, reason = judge(headers)
                answer = b"" if reason is None else json.dumps({"reason": reason}).encode()
                if reason is None:
                    with open(file, "a") as opened:
                        opened.write(json.dumps({"headers": headers, "body": json.loads(body)}) + "\n")
                said = [(":status", str(status)), ("apns-id", headers.get("apns-id", ""))]
                connection.send_headers(event.stream_id, said, end_stream=not answer)
                if answer:
                    connection.send_data(event.stream_id, answer, end_stream=True)
            elif isinstance(event, ConnectionTerminated):
                writer.close()
                return
        writer.write(connection.data_to_send())
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
    await server.serve_forever()


asyncio.run(main())
