"""The embedded model: so that everything runs on a fresh machine without a key or a download.

    nearest   the model: the label of the nearest demonstration in the prompt. It is not an LLM.
    prompts   the two prompt forms it reads, and how it answers in each
    limits    settings, rate limit and counters of the server, pure
    api       OpenAI's HTTP interface in front of it
    server    the same as a process, or on a running loop

A program reaches it as it would reach any model, over HTTP with a base address, a key and a model's name; what works
with it works with a real endpoint.
"""
