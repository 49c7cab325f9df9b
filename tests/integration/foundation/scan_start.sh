#!/bin/sh
# Starts a unit that scans TCP ports of $1 again and again and writes one JSON list of open ports a line: those of $2, a
# list with commas, and some more.
set -eu
cat >/tmp/scan_loop.py <<'PYTHON'
import asyncio, json, sys
# The ports that the lab's services listen on, those that Debian's packages of them use before they are configured, and
# the usual suspects around them.
PORTS = sorted({*map(int, sys.argv[2].split(",")),
                22, 25, 53, 80, 111, 443, 631, 2019, 3000, 3128, 5000, 5432, 6379, 8000, 8080, 8081, 8443, 8888, 8989,
                9000, 9090, 9091, 9093, 9094, 9100, 9115, 61209, *range(8070, 8100), *range(9090, 9110)})
async def probe(port):
    try:
        _r, w = await asyncio.wait_for(asyncio.open_connection(sys.argv[1], port), 0.5)
    except (OSError, asyncio.TimeoutError):
        return None
    w.close()
    return port
async def main():
    while True:
        found = await asyncio.gather(*(probe(port) for port in PORTS))
        with open("/tmp/scan.jsonl", "a") as lines:
            lines.write(json.dumps([port for port in found if port]) + "\n")
        await asyncio.sleep(0.3)
asyncio.run(main())
PYTHON
systemd-run --quiet --unit=scan --collect python3 /tmp/scan_loop.py "$1" "$2"
touch /tmp/scan.jsonl
