"""The client of the official package `mcp`, against aman's own server, for tests/it/mcp_served.rs.

Usage: mcp_client.py URL TOKEN MODE ANSWER CALL...
       MODE is `legacy` (initialize) or `auto` (the newest version first); ANSWER is what the person says when asked: `accept`,
       `decline`, or `nobody`, who cannot be asked; each CALL is a tool and its arguments as JSON, as `why {"event": "1"}`.
       Prints a line of JSON for what was agreed on, for each question, and for what comes of each call.
"""

import asyncio
import json
import sys

import httpx2
import mcp_types as types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

url, token, mode, answer, *calls = sys.argv[1:]


def say(**line):
    print(json.dumps(line), flush=True)


async def ask(_context, params):
    say(asked=params.message)
    return types.ElicitResult(action=answer, content={"confirm": True} if answer == "accept" else None)


async def main():
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}) as http:
        transport = streamable_http_client(url, http_client=http)
        callback = None if answer == "nobody" else ask
        async with Client(transport, mode=mode, elicitation_callback=callback) as client:
            listed = await client.list_tools()
            say(protocol=client.protocol_version, server=client.server_info.name, tools=[tool.name for tool in listed.tools])
            for call in calls:
                tool, arguments = call.split(" ", 1)
                result = await client.call_tool(tool, json.loads(arguments))
                say(failed=bool(result.is_error), text=result.content[0].text, value=result.structured_content)


asyncio.run(main())
