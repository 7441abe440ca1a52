"""The tokenize worker as a process between real sockets."""

from __future__ import annotations

import subprocess
import sys

import pytest
import zmq

from lightllm_server import channels
from lightllm_server.channels import Receiver, Sender
from lightllm_server.messages import (
    ApiToTokenizer,
    ChatMessage,
    Codec,
    EncodeChat,
    Encoded,
    EncodeFailed,
    EncodeText,
    TokenizerToApi,
)
from lightllm_server.status_page import Field, State, StatusPage
from small_tokenizers import byte_level

RUN = """
import sys
from pathlib import Path
from lightllm_server.config import EngineConfig, ServerConfig
from lightllm_server.status_page import StatusPage
from lightllm_server.tokenize_worker import run
run_dir = Path(sys.argv[1])
config = ServerConfig(engine=EngineConfig(model_dir=sys.argv[1]))
run(config, run_dir, StatusPage(run_dir / "status"), 1)
"""
TEMPLATE = """\
{% if messages[0].content == 'slow' %}\
{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}\
<s>{{ messages[0].content }}"""


@pytest.fixture
def row(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    page = StatusPage.create(tmp_path / "status", ["tokenize-0", "tokenize-1"])
    child = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)])
    yield page["tokenize-1"]
    child.kill()
    child.wait()


@pytest.mark.slow
def test_jobs_are_answered_in_order_also_after_a_slow_one(tmp_path, row):
    with zmq.Context() as context:
        answers = Receiver(
            context,
            channels.socket_path(tmp_path, channels.API_FROM_TOKENIZE),
            Codec[TokenizerToApi](TokenizerToApi),
        )
        jobs = Sender(
            context,
            channels.socket_path(tmp_path, channels.tokenize_socket(1)),
            Codec[ApiToTokenizer](ApiToTokenizer),
        )
        try:
            jobs.send(EncodeChat(job_id=1, messages=(ChatMessage("user", "slow"),)))
            jobs.send(EncodeChat(job_id=2, messages=(ChatMessage("user", "the dog"),)))
            jobs.send(EncodeText(job_id=3, text="the dog"))
            expected = tuple(byte_level().encode("the dog").ids)
            assert answers.receive(20_000) == EncodeFailed(
                job_id=1, error="the chat template takes more than 2 s"
            )
            assert answers.receive(5000) == Encoded(job_id=2, token_ids=expected)
            assert answers.receive(5000) == Encoded(job_id=3, token_ids=expected)
            assert row.state is State.READY
            assert row[Field.WORK] == 0
        finally:
            answers.close()
            jobs.close()
