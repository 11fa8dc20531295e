"""Talks to a machine by the QMP library of QEMU's project (qemu.qmp on PyPI), and prints what it heard."""

import asyncio
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient


async def main(path):
    said = []
    client = QMPClient("test")
    heard = EventListener()
    client.register_listener(heard)
    await client.connect(path)
    said.append((await client.execute("query-status"))["status"])
    said.append((await client.execute("query-block"))[0]["device"])
    await client.execute("stop")
    said.append((await heard.get())["event"])
    await client.execute("cont")
    said.append((await heard.get())["event"])
    try:
        await client.execute("block_resize", {"device": "hda"})
    except ExecuteError as error:
        said.append(error.error_class)
    await client.execute("quit")
    said.append((await heard.get())["event"])
    await client.disconnect()
    print(*said)


asyncio.run(main(sys.argv[1]))
