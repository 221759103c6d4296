"""Asks two servers the same long question, one after the other: the second one need not read it.

    python chat.py [URL URL]

The servers are those of serve.sh. Needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request

URLS = ("http://127.0.0.1:8001", "http://127.0.0.1:8002")
DOCUMENT = "Paragraph {0}: in the year {1} the river rose by {2} cm, and the mill stood still. "


def ask(url: str, messages: list[dict[str, str]]) -> tuple[str, float]:
    """The answer, and the seconds until its first word."""
    body = {
        "model": "example",
        "messages": messages,
        "temperature": 0,
        "max_tokens": 24,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    started, first, text = time.perf_counter(), 0.0, ""
    with urllib.request.urlopen(request) as lines:
        for line in lines:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                part = choices[0]["delta"].get("content") or "" if choices else ""
                if part and not first:
                    first = time.perf_counter() - started
                text += part
    return text, first


def external_hits(url: str) -> float:
    """Tokens that the server did not compute because the agent had them."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("vllm:external_prefix_cache_hits_total")
    )


def main() -> None:
    first, second = sys.argv[1:3] if len(sys.argv) > 2 else URLS
    document = "".join(DOCUMENT.format(n, 1900 + n, n * 7 % 90) for n in range(40))
    messages = [{"role": "user", "content": f"{document}When did the mill stand still?"}]
    answers = []
    for url in (first, second):
        before = external_hits(url)
        text, seconds = ask(url, messages)
        answers.append(text)
        hits = external_hits(url) - before
        print(f"{url}: {seconds:.2f} s to the first word, {hits:.0f} tokens from the agent")
    print(f"The answers are {'the same' if answers[0] == answers[1] else 'DIFFERENT'}.")


if __name__ == "__main__":
    main()
