"""A program that is started like ``vllm serve`` and answers as one that has no model yet: names and versions alone.

``python fake_vllm.py [--die] FOLDER --host H --port P --served-model-name NAME …`` writes its process id, that of a
child, and its arguments into ``FOLDER/served.json``.
"""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


def main() -> None:
    arguments = [one for one in sys.argv[1:] if one != "--die"]
    folder, given = Path(arguments[0]), dict(zip(arguments[1::2], arguments[2::2], strict=False))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    seen = {"pid": os.getpid(), "child": child.pid, "arguments": arguments, "environment": dict(os.environ)}
    (folder / "served.json").write_text(json.dumps(seen))
    if "--die" in sys.argv:
        print("no kernel image is available")
        sys.exit(3)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = given["--served-model-name"]
            found = {"version": "1.2"} if self.path == "/version" else {"data": [{"id": name}]}
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    HTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
