"""Talks to the agent `chat` by OpenAI's own client: `python talk.py "what is 6 * 7?"`, again and again."""

import os
import sys

from openai import OpenAI

url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
stream = client.chat.completions.create(
    model="chat",  # the agent's name
    messages=[{"role": "user", "content": " ".join(sys.argv[1:])}],
    extra_headers={"X-Conversation-Id": "talk"},  # the agent remembers what was said in it
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
