"""Pushes events as the CloudEvents SDK writes them, in every form, and reads them back with it.

Usage: cloudevents_push.py URL TOKEN. Prints one line a push: the form, and the id under which the daemon has the event.
"""

import json
import sys
import urllib.parse
import urllib.request
from datetime import datetime, timezone

from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

URL, TOKEN = sys.argv[1:]
FORMAT = JSONFormat()


def call(path, headers, body=None):
    request = urllib.request.Request(URL + path, data=body, headers=headers | {"authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def event(name, data, content_type="application/json", **more):
    attributes = {
        "id": f"sdk {name}/ü",
        "source": "https://example.org/sdk",
        "type": f"sdk.{name}",
        "specversion": "1.0",
        "subject": "with a space, ü and %",
        "time": datetime(2026, 1, 2, 3, 4, 5, 678000, timezone.utc),
        "datacontenttype": content_type,
        "flavour": "vanilla",
    }
    return CloudEvent(attributes | more, data)


def check(form, sent, answer):
    """What is stored reads as the same event: its attributes, its data, and those that the daemon adds."""
    assert answer["id"] == sent.get_id(), answer
    stored = call("/events/dump/" + urllib.parse.quote(answer["id"], safe=""), {})["event"]
    message = http.HTTPMessage({"content-type": "application/cloudevents+json"}, json.dumps(stored).encode())
    read = http.from_http(message, FORMAT)
    for name, value in sent.get_attributes().items():
        assert read.get_attributes().get(name) == value, (form, name, value, read.get_attributes())
    assert read.get_data() == sent.get_data(), (form, read.get_data())
    print(form, answer["id"], flush=True)


DATA = {"n": 1, "text": "ü", "list": [1.5, None, True]}
for form, sent in {
    "binary": event("binary", DATA),
    "binary-text": event("text", "plain ü", "text/plain"),
    "binary-bytes": event("bytes", b"\x00\xff\x80", "application/octet-stream"),
}.items():
    message = http.to_binary_event(sent)
    check(form, sent, call("/events/push", message.headers, message.body))

for form, sent in {
    "structured": event("structured", DATA),
    "structured-bytes": event("structuredbytes", b"\x00\xff\x80", "application/octet-stream"),
}.items():
    message = http.to_structured_event(sent)
    check(form, sent, call("/events/push", message.headers, message.body))

batch = [event(f"batch{n}", DATA | {"n": n}) for n in range(3)]
body = b"[" + b",".join(http.to_structured_event(sent).body for sent in batch) + b"]"
answers = call("/events/push", {"content-type": "application/cloudevents-batch+json"}, body)["items"]
for sent, answer in zip(batch, answers, strict=True):
    check("batch", sent, answer)
