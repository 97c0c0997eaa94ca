"""A server of streamable HTTP, made with the official package `mcp`, for tests/it/mcp.rs.

Usage: mcp_server.py PORT [TOKEN]
       PORT 0 takes a free one; prints its port once it listens, on loopback only. With a TOKEN requests without it are
       refused.
"""

import asyncio
import socket
import sys

import uvicorn
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("tests")
token = sys.argv[2] if len(sys.argv) > 2 else None


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
async def grow(context: Context) -> str:
    """Makes a further tool, and says that the list changed."""

    def late() -> str:
        """Was not there at first."""
        return "late"

    server.add_tool(late, name="late tool")
    await context.notify_tools_changed()
    return "grown"


@server.tool()
async def wait(seconds: float) -> str:
    """Takes its time."""
    await asyncio.sleep(seconds)
    return "waited"


def guarded(app):
    async def call(scope, receive, send):
        headers = dict(scope.get("headers", []))
        if scope["type"] == "http" and token and headers.get(b"authorization") != f"Bearer {token}".encode():
            await send({"type": "http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Bearer")]})
            await send({"type": "http.response.body", "body": b"no"})
            return
        await app(scope, receive, send)

    return call


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(guarded(server.streamable_http_app()), log_level="error")).run(sockets=[listener])
