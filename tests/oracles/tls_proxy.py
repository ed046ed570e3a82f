"""Speaks TLS with its clients, and plainly with the server behind it: tls_proxy.py PORT TARGET_PORT CERTIFICATE."""
import asyncio
import ssl
import sys

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[3])


async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def handle(reader, writer):
    try:
        behind = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    except ConnectionError:
        return writer.close()
    await asyncio.gather(pump(reader, behind[1]), pump(behind[0], writer))


async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", int(sys.argv[1]), ssl=context)
    await server.serve_forever()


asyncio.run(main())
