"""The other side of a webhook, as the library of Standard Webhooks has it.

Usage: webhooks.py vector            checks the library itself by the example that the specification publishes
       webhooks.py send URL SECRET   calls a hook: a good call, the same again, then calls that must be refused
       webhooks.py receive SECRET    prints its port, takes one call, checks its signature and prints what it said
"""

import http.server
import sys
import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone

from standardwebhooks import Webhook

BODY = '{"type": "order.paid",  "text": "\u00fc", "n": 1}'


def vector():
    signed = Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", datetime.fromtimestamp(1614265330, timezone.utc), '{"test": 2432232314}'
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", signed


def send(url, secret):
    def call(what, minutes=0, body=BODY, sender=secret):
        at = datetime.now(timezone.utc) + timedelta(minutes=minutes)
        headers = {
            "content-type": "application/json",
            "webhook-id": "msg_1",
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": Webhook(sender).sign("msg_1", at, BODY),
        }
        request = urllib.request.Request(url, body.encode(), headers)
        try:
            with urllib.request.urlopen(request) as answer:
                print(what, answer.status, answer.read().decode())
        except urllib.error.HTTPError as answer:
            print(what, answer.code, answer.read().decode())

    call("good")
    call("again")
    call("old", minutes=-6)
    call("early", minutes=6)
    call("tampered", body=BODY.replace("1", "2"))
    call("stranger", sender="whsec_" + "A" * 32)


def receive(secret):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            Webhook(secret).verify(body, dict(self.headers))
            self.send_response(204)
            self.end_headers()
            print(body.decode(), flush=True)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.handle_request()


{"vector": vector, "send": send, "receive": receive}[sys.argv[1]](*sys.argv[2:])
