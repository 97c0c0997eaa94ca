"""The client of the official package `openai`, against aman's agents, for tests/it/openai.rs.

Usage: openai_client.py URL TOKEN
       Lists the models, talks twice in one conversation, once as a whole and once as a stream, and asks for what agents do not
       do. Prints a line of JSON for each.
"""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)


def say(**line):
    print(json.dumps(line), flush=True)


say(models=[model.id for model in client.models.list()])
talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Good day"}]
first = client.chat.completions.create(model="aman", messages=talk, temperature=0)
said = first.choices[0].message.content
say(said=said, finish=first.choices[0].finish_reason, tokens=first.usage.total_tokens, model=first.model)

talk += [{"role": "assistant", "content": said}, {"role": "user", "content": "And now?"}]
stream = client.chat.completions.create(
    model="aman", messages=talk, stream=True, stream_options={"include_usage": True}
)
pieces, finish, usage = [], None, None
for chunk in stream:
    if chunk.choices:
        pieces.append(chunk.choices[0].delta.content or "")
        finish = chunk.choices[0].finish_reason or finish
    usage = chunk.usage or usage
say(said="".join(pieces), finish=finish, tokens=usage.total_tokens)

# What was said last is said anew, as after an edit: another conversation.
talk[-1] = {"role": "user", "content": "Or now?"}
again = client.chat.completions.create(model="aman", messages=talk)
say(said=again.choices[0].message.content)

tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
for wrong in (
    {"model": "aman", "messages": talk, "tools": [tool]},
    {"model": "nobody", "messages": talk},
    {"model": "aman", "messages": [{"role": "assistant", "content": "I spoke last"}]},
):
    try:
        client.chat.completions.create(**wrong)
    except openai.APIStatusError as error:
        say(status=error.status_code, code=error.code, param=error.param, type=error.type)
