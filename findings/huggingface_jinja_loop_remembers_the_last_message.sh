#!/usr/bin/env bash
# Guess: @huggingface/jinja (npm), which renders the chat templates of transformers.js, writes the
# same prompt as Python's Jinja does for a template that the former takes without an error. In
# Jinja each round of a loop starts anew: what {% set %} has set in the round before is gone, which
# is why templates need namespace() to carry something on. So a thought that is set for a message
# with one doesn't turn up in a message without.
#
# @huggingface/jinja 0.5.11, jinja2 3.1.6: it does turn up. There is one scope for the loop instead
# of one for each round, so that a variable keeps its value until it's set again; it's gone only
# after the loop. In a template that sets a variable in some rounds only (the thought, the tool's
# name, a flag) later messages get what belongs to an earlier one: an answer, and even a question,
# is given a thought that isn't its own. A count with {% set i = i + 1 %}, which stays at 1 in
# Jinja, goes up. Nothing is said. With the variable set at the start of each round both agree.
#
# Seen (a template that writes a message's thought if there is one; the prompt):
#   Python: <user>2 + 2? <assistant>(I add.) 4 <user>Thanks. <assistant>Bye.
#   JavaScript: <user>2 + 2? <assistant>(I add.) 4 <user>(I add.) Thanks. <assistant>(I add.) Bye.
#   set anew, JavaScript: <user>2 + 2? <assistant>(I add.) 4 <user>Thanks. <assistant>Bye.
#   {% set i = i + 1 %} in four rounds: Python 1111, after it 0; JavaScript 1234, after it 0
#   once set in an inner loop: Python "x---x---", JavaScript "xxxxxxxx"

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'jinja2==3.1.6' 'markupsafe==3.0.3' \
    2>"$folder/log" || { cat "$folder/log"; exit 1; }
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts '@huggingface/jinja@0.5.11' \
    >log 2>&1 || { cat log; exit 1; }

cat >render.mjs <<'END'
import { readFileSync, writeFileSync } from "node:fs";
import { Template } from "@huggingface/jinja";

const { templates, values } = JSON.parse(readFileSync("cases.json"));
writeFileSync("rendered.json", JSON.stringify(
  templates.map((template) => new Template(template).render(values))));
END

venv/bin/python - <<'END'
import json
import subprocess

from jinja2.sandbox import ImmutableSandboxedEnvironment

CHAT = """
{%- for message in messages %}
    {#- RESET #}
    {%- if message.thought is defined %}
        {%- set thought = message.thought %}
    {%- endif %}
    {{- '<' + message.role + '>' }}
    {%- if thought %}
        {{- '(' + thought + ') ' }}
    {%- endif %}
    {{- message.content }}
    {{- '' if loop.last else ' ' }}
{%- endfor %}"""
RESET = CHAT.replace("{#- RESET #}", "{%- set thought = '' %}")
COUNT = ("{% set i = 0 %}{% for message in messages %}{% set i = i + 1 %}{{ i }}{% endfor %}"
         ", after it {{ i }}")
INNER = ("{% for a in range(2) %}{% for b in range(4) %}{% if loop.first %}{% set x = 'x' %}"
         "{% endif %}{{ x if x is defined else '-' }}{% endfor %}{% endfor %}")
MESSAGES = [{"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "thought": "I add.", "content": "4"},
            {"role": "user", "content": "Thanks."},
            {"role": "assistant", "content": "Bye."}]

templates = [CHAT, RESET, COUNT, INNER]
values = {"messages": MESSAGES}
with open("cases.json", "w") as file:
    json.dump({"templates": templates, "values": values}, file)
subprocess.run(["node", "render.mjs"], check=True)
with open("rendered.json") as file:
    script = json.load(file)
# The environment in which transformers renders its templates.
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
python = [environment.from_string(template).render(**values) for template in templates]


print(f"Python: {python[0]}")
print(f"JavaScript: {script[0]}")
print(f"set anew, JavaScript: {script[1]}")
print(f"{{% set i = i + 1 %}} in four rounds: Python {python[2]}; JavaScript {script[2]}")
print(f'once set in an inner loop: Python "{python[3]}", JavaScript "{script[3]}"')
assert python[0].split(" <")[2:] == ["user>Thanks.", "assistant>Bye."]
assert script[0].split(" <")[2:] == ["user>(I add.) Thanks.", "assistant>(I add.) Bye."]
assert python[1] == script[1] == python[0]
assert (python[2], script[2]) == ("1111, after it 0", "1234, after it 0")
assert (python[3], script[3]) == ("x---x---", "xxxxxxxx")
END
