"""Stands in for Nova: it knows no server, so it answers 404 to everything.

Since 21.2 Cinder asks Nova before it deletes an attachment that has an instance_uuid (CVE-2023-2088);
without a compute endpoint in the catalog that ends in HTTP 500. A real Nova that is asked about an
id that is none of its servers answers as this does.
"""
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def answer(self):
        self.rfile.read(int(self.headers.get('Content-Length') or 0))
        body = json.dumps({'itemNotFound': {
            'code': 404, 'message': 'Instance could not be found.'}}).encode()
        self.send_response(404)
        self.send_header('Content-Type', 'application/json; charset=UTF-8')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

    do_GET = do_POST = do_PUT = do_DELETE = answer


ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
