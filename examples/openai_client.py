"""OpenAI's client through the cache: python openai_client.py [http://localhost:30001]

Only the base URL changes. Ends with an error when the second call is not a hit.
"""

import sys
import uuid

import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:30001"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
question = f"What is the sea? ({uuid.uuid4()})"


def ask(n: int) -> str:
    """Asks for n answers; prints the first, and says where they came from."""
    answer = client.chat.completions.with_raw_response.create(
        model="default",
        messages=[{"role": "user", "content": question}],
        max_tokens=16,
        n=n,
    )
    choices = answer.parse().choices
    assert len(choices) == n
    kind = answer.headers["X-Cache"]
    print(f"n={n}: {kind:<8} {choices[0].message.content!r}")
    return kind


assert [ask(1), ask(1), ask(3), ask(3)] == ["MISS", "HIT", "PARTIAL", "HIT"]
