"""Ask a running server for an image and keep its previews: ``aimamba serve &``, then ``python examples/client.py``.

Writes preview-16.png, preview-32.png, ... and image.png. It needs nothing but Python. The key of a server that asks for
one is taken from AIMAMBA_API_KEY.
"""

import base64
import json
import os
import sys
import urllib.request
from pathlib import Path

SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
ASKED = {"classes": ["planets"], "cfg_scale": 1.5, "seed": 7, "every": 16}

HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('AIMAMBA_API_KEY', 'none')}"}

request = urllib.request.Request(f"{SERVER}/v1/images/stream", json.dumps(ASKED).encode(), HEADERS)
with urllib.request.urlopen(request, timeout=120) as answer:
    event = ""
    for line in answer:
        name, _, text = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            event = text
        elif name == "data" and event in ("preview", "image"):
            found = json.loads(text)
            path = Path(f"preview-{found['tokens']}.png" if event == "preview" else "image.png")
            path.write_bytes(base64.b64decode(found["b64_json"]))
            print(path)
        elif name == "data" and event == "error":
            sys.exit(json.loads(text)["error"]["message"])
