"""A server in this process that answers as vLLM does, or as any other of OpenAI's kind, with a tiny model.

``with FakeServer(model, tokenizer) as server`` serves at ``server.base_url``. What it should do wrong is a function in
``server.trouble``: called with the number of the request to a path of answers, from 1, and its body, it returns a
`Reply`, or None for the right answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What is sent instead: text as it stands, anything else as JSON; `drop` closes the connection."""

    content: Any = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False


def busy(status: int = 429) -> Reply:
    return Reply({"error": {"message": "too many"}}, status, {"retry-after-ms": "1"})


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is none of the tests' failures."""


class FakeServer:
    """A served model. `change` is laid over each right answer's first choice."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str = "tiny", key: str | None = None) -> None:
        self.model, self.tokenizer, self.name, self.key = model, tokenizer, name, key
        self.models: list[str] = [name]
        self.trouble: Callable[[int, dict], Reply | None] = lambda number, body: None
        self.change: dict[str, Any] = {}
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.began: list[float] = []
        self._lock = threading.Lock()

    def __enter__(self) -> FakeServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = {"/v1/models": {"data": [{"id": one} for one in outer.models]}, "/version": {"version": "9.9"}}
                self.send(Reply(found[self.path]) if self.path in found else Reply({"error": "none"}, 404))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.send(outer.answer(self.path, body, {name.lower(): one for name, one in self.headers.items()}))

            def send(self, reply: Reply) -> None:
                if reply.drop:
                    self.close_connection = True
                    return
                text = isinstance(reply.content, str)
                content = (reply.content if text else json.dumps(reply.content)).encode()
                self.send_response(reply.status)
                kind = "text/html" if text else "application/json"
                for name, value in {"content-type": kind, "content-length": len(content), **reply.headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = _Quiet(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: dict, headers: dict) -> Reply:
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.began.append(time.monotonic())
            number = len(self.bodies)
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return Reply({"error": {"message": "no such key"}}, 401)
        if (reply := self.trouble(number, body)) is not None:
            return reply
        if path == "/v1/chat/completions":
            return Reply(self._chat(body))
        return Reply(self._complete(body))

    def _complete(self, body: dict) -> dict:
        in_ids = not isinstance(body["prompt"], str)
        ids = tuple(body["prompt"] if in_ids else self.tokenizer(body["prompt"])["input_ids"])
        found, logprobs = self._sample(ids, body)
        choice = {"text": found.text, "finish_reason": "stop" if found.ended else "length", "index": 0}
        if in_ids:
            choice |= {"token_ids": list(found.ids), "prompt_token_ids": list(ids)}
            choice["logprobs"] = {"token_logprobs": logprobs, "tokens": []}
        return self._reply([choice | self.change], ids, found)

    def _chat(self, body: dict) -> dict:
        ids = tuple(self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)["input_ids"])
        found, _ = self._sample(ids, body)
        choice = {"message": {"role": "assistant", "content": found.text}, "finish_reason": "stop"}
        return self._reply([choice | self.change], ids, found)

    def _reply(self, choices: list, ids: tuple, found: Any) -> dict:
        usage = {"prompt_tokens": len(ids), "completion_tokens": found.tokens, "total_tokens": len(ids) + found.tokens}
        return {"model": self.name, "choices": choices, "usage": usage}

    def _sample(self, ids: tuple[int, ...], body: dict) -> tuple[Any, list[float]]:
        """Return an answer drawn from the request's seed, and the log-probabilities of its tokens."""
        from ballast.evaluation.generation import GenerationOptions, generate
        from ballast.evaluation.scoring import ScoredSequence, sequence_statistics

        options = GenerationOptions(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            seed=body["seed"],
            stop=tuple(body.get("stop", ())),
        )
        prompt = self.tokenizer.decode(ids)
        assert tuple(self.tokenizer(prompt)["input_ids"]) == ids
        with self._lock:
            [[found]] = generate(self.model, self.tokenizer, [prompt], options)
            [values] = sequence_statistics(self.model, [ScoredSequence(ids + found.ids, len(ids))])
        return found, [float(value) for value in values["logprob"]]
