"""A collector of traces for tests. The server is ours; what it understands is what the official package
opentelemetry-proto decodes.

Usage: otlp.py PORT STATUS...
       PORT 0 takes a free one. Prints its port, then a line of JSON for each request: its path and headers, the status that
       it is answered with (one STATUS after the other, the last one stays), and, unless it is refused, its spans.
"""

import http.server
import json
import sys

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

statuses = [int(status) for status in sys.argv[2:]] or [200]


def value(any_value):
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(one) for one in any_value.array_value.values]
    return getattr(any_value, kind)


def attributes(pairs):
    return {pair.key: value(pair.value) for pair in pairs}


def shown(span, resource, scope):
    return {
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "name": span.name,
        "kind": span.kind,
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "attributes": attributes(span.attributes),
        "links": [{"trace": link.trace_id.hex(), "id": link.span_id.hex()} for link in span.links],
        "error": span.status.message if span.status.code == 2 else None,
        "flags": span.flags,
        "resource": resource,
        "scope": scope,
    }


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        # What this version of the package does not know would be a mistake of ours.
        assert not request.FindInitializationErrors() and request.SerializeToString() == body, "not as the package writes it"
        spans = [
            shown(span, attributes(resource.resource.attributes), scope.scope.name)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        headers = {name.lower(): text for name, text in self.headers.items()}
        line = {"path": self.path, "headers": headers, "status": status, "spans": spans if status == 200 else []}
        print(json.dumps(line), flush=True)
        answer = ExportTraceServiceResponse().SerializeToString() if status == 200 else b""
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Collector)
print(server.server_port, flush=True)
server.serve_forever()
