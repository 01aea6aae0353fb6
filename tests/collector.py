"""A collector of traces in this process, for tests of what a server sends to one."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any


class Collector:
    """Takes traces by OTLP over HTTP, and answers with ``status``."""

    def __init__(self) -> None:
        self.status = 200
        self.requests: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.requests.append(SimpleNamespace(path=self.path, headers=self.headers, body=body))
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keeps the test's output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def spans(self) -> list[Any]:
        """All that came, in their order."""
        return [span for part in self._parts() for scoped in part.scope_spans for span in scoped.spans]

    def resource(self) -> dict[str, str]:
        """What the last ones say of their server."""
        return {each.key: each.value.string_value for each in self._parts()[-1].resource.attributes}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _parts(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return [
            part
            for request in self.requests
            for part in ExportTraceServiceRequest.FromString(request.body).resource_spans
        ]
