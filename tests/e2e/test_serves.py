"""`kubectl apply`, Ready, and an answer by DNS name from another pod."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"
# the question, whole and streamed, and an error as one of the package's own
ASK = """
import openai
client = openai.OpenAI(base_url="http://demo.{namespace}.svc/v1", api_key="none")
asked = {{
    "model": "demo",
    "messages": [{{"role": "user", "content": "What is TokenAttention?"}}],
    "temperature": 0,
}}
whole = client.chat.completions.create(**asked)
stream = client.chat.completions.create(**asked, stream=True)
print(whole.choices[0].message.content)
print("".join(chunk.choices[0].delta.content or "" for chunk in stream))
try:
    client.completions.create(model="demo", prompt="a", max_tokens=-1)
except openai.BadRequestError as error:
    print("refused:", error.message)
"""


@pytest.fixture(scope="session")
def client_image(programs) -> str:
    import images

    dockerfile = Path(__file__).parent / "client" / "Dockerfile"
    return images.push(images.build("client", "lightllm-e2e-client:dev", dockerfile))


def test_the_example_answers_another_pods_openai_client(kube, client_image):
    kube("apply", "-f", str(EXAMPLES / "demo.yaml"))
    kube.wait_condition("demo", "Ready", "True", "Serving", timeout=180)
    script = ASK.format(namespace=kube.namespace)
    said = kube.run_pod("client", "python", "-c", script, image=client_image)
    whole, streamed, refused = said.strip().splitlines()
    assert "every token has its own slot" in whole
    assert streamed == whole
    assert refused.startswith("refused:")
    assert "max_tokens" in refused
    row = kube("get", "lld", "demo", "--no-headers").split()
    assert row[:7] == ["demo", "True", "Serving", "1", "1", "1", "int8"]
