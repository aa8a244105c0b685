"""Ends TLS in front of a server: tls.py CERTIFICATE KEY UPSTREAM_PORT PORT_FILE. Writes the port it took to PORT_FILE."""

import asyncio
import os
import ssl
import sys


async def pump(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # Either side may hang up.
    finally:
        writer.close()


async def main(certificate, key, upstream, port_file):
    async def serve(reader, writer):
        to, back = await asyncio.open_connection("127.0.0.1", int(upstream))
        await asyncio.gather(pump(reader, back), pump(to, writer))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    with open(port_file + ".new", "w") as file:
        file.write(str(server.sockets[0].getsockname()[1]))
    os.rename(port_file + ".new", port_file)
    await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
