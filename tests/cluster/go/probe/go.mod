module lightllm.test/probe

go 1.25.0
