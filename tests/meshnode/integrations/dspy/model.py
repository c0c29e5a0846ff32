"""A deterministic model behind OpenAI's interface: any prompt, the same answer each time, nothing else but a count."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from meshnode.lm import nearest, prompts
from meshnode.lm.prompts import Message


class Model:
    """Answers questions by the nearest demonstration, and asked for anything else (an instruction, advice), makes up a
    text from the prompt's digest. An instruction so made helps some of the questions that no demonstration does.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.latency_s = 0.0
        self.in_flight = 0
        self._lock = threading.Lock()
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                with model._lock:
                    model.in_flight += 1
                try:
                    self._answer()
                finally:
                    with model._lock:
                        model.in_flight -= 1

            def _answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = json.dumps(model.answer(body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def total(self) -> int:
        return sum(self.asked.values())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = [Message(m["role"], _text(m["content"])) for m in body["messages"]]
        asked = messages[-1].text
        with self._lock:
            self.asked[asked] += 1
        if self.latency_s:
            time.sleep(self.latency_s)
        said = {"role": "assistant", "content": _say(messages)}
        count = body.get("n") or 1
        return {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": i, "message": said, "finish_reason": "stop"} for i in range(count)],
            "usage": {"prompt_tokens": len(asked), "completion_tokens": 1, "total_tokens": len(asked) + 1},
        }  # fmt: skip


def _say(messages: list[Message]) -> str:
    prompt = prompts.read(messages)
    whole = "\n".join(message.text for message in messages)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    if prompt.form != "chat_adapter":
        return f"```\nName the thing that is meant, variant {digest}\n```"
    known = {"answer", "reasoning", "query", "kind"}
    if not set(prompt.defaults) <= known:
        values = dict.fromkeys(prompt.defaults, f"Say what it is, variant {digest}")
        return prompts.write(prompt, values | {"completed": ""}, f"because of {digest}").replace(
            "[[ ## completed ## ]]\n\n", ""
        )
    text = nearest.answer(messages)
    if "unknown" in text and "variant" in whole and int(digest, 16) % 3 == 0:
        return text.replace("unknown", "json")
    return text


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)
