"""What this plugin does, in a sentence."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import http_handler
from wit_world.imports import log, types


def respond(value, status=200):
    """A JSON response."""
    headers = [("content-type", "application/json")]
    return http_handler.Response(status, headers, http_handler.Body_Bytes(json.dumps(value).encode()), [])


class HttpHandler(exports.HttpHandler):
    def handle(self, request):
        params = dict(request.params)
        match (request.method, request.route):
            case ("GET", "/my-plugin/hello/{name}"):
                log.write(log.Level.INFO, "Somebody was greeted.", [("name", params["name"])])
                return respond({"hello": params["name"]})
            case _:
                # What is raised is the error that the host makes a problem document of.
                raise Err(types.Error_NotFound(f"{request.method} {request.route}"))


class BodyStream(http_handler.BodyStream):
    """For responses with `Body_Streamed(BodyStream())`; this plugin has none."""

    def next(self):
        return None
