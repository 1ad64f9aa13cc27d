#!/usr/bin/env bash
# Guess: @huggingface/jinja (npm), which renders the chat templates of transformers.js, writes the
# same prompt as Python's Jinja does for a template that the former takes without an error. So
# answer.lstrip('\n'), as templates of models that think use it between thought and answer, takes
# line ends away and nothing else, and word.strip('"') takes quotation marks away.
#
# @huggingface/jinja 0.5.11, jinja2 3.1.6: strip(), lstrip() and rstrip() don't look at their
# argument: they always take white space of any kind, and only that. So (1) an answer that begins
# with indented code or a list loses the indentation of its first line, and only of that one: in the
# prompt for the next turn the model reads that it wrote broken Python. Markdown's two spaces at the
# end of a line go, too. (2) What should go, but isn't white space, stays: quotation marks, brackets
# and markers. Nothing is said. Prompts differ from those that the model was trained and tested
# with, and a prefix cache from another program doesn't fit. split(), replace() and startswith()
# do look at theirs, and white space without argument is right.
#
# Seen (a template for a chat with thoughts; the turn of the assistant in the second prompt):
#   Python:     "<assistant>    a = 1\n    b = 2  </assistant>"
#   JavaScript: "<assistant>a = 1\n    b = 2</assistant>"
#     first lines that Python can read after "if x:\n": true, false
#   {{ text.strip('"') }} of "\"yes\"": Python "yes", JavaScript "\"yes\""
#   {{ text.rstrip('.') }} of "the end...": Python "the end", JavaScript "the end..."
#   {{ text.lstrip('#') }} of "## Title": Python " Title", JavaScript "## Title"
#   {{ text.strip('\n') }} of "\n  - item\n": Python "  - item", JavaScript "- item"
#   {{ text.strip() }} of " \n yes ": Python "yes", JavaScript "yes"
#   {{ text.split('</think>')[-1] }} of "hm</think> yes": Python " yes", JavaScript " yes"

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

const cases = JSON.parse(readFileSync("cases.json"));
writeFileSync("rendered.json", JSON.stringify(
  cases.map(([template, values]) => new Template(template).render(values))));
END

venv/bin/python - <<'END'
import ast
import json
import subprocess

from jinja2.sandbox import ImmutableSandboxedEnvironment

# The thought of an earlier turn is left out, as the templates of such models do it.
CHAT = r"""
{%- for message in messages %}
    {%- set text = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set text = text.split('</think>')[-1].strip('\n') %}
    {%- endif %}
    {{- '<' + message.role + '>' + text + '</' + message.role + '>' }}
{%- endfor %}"""
CODE = "    a = 1\n    b = 2  "
MESSAGES = [{"role": "user", "content": "What comes after 'if x:'?"},
            {"role": "assistant", "content": f"<think>Hm.</think>\n\n{CODE}\n"},
            {"role": "user", "content": "Thanks."}]
EXPRESSIONS = (("text.strip('\"')", '"yes"', "yes", '"yes"'),
               ("text.rstrip('.')", "the end...", "the end", "the end..."),
               ("text.lstrip('#')", "## Title", " Title", "## Title"),
               (r"text.strip('\n')", "\n  - item\n", "  - item", "- item"),
               ("text.strip()", " \n yes ", "yes", "yes"),
               ("text.split('</think>')[-1]", "hm</think> yes", " yes", " yes"))

cases = [(CHAT, {"messages": MESSAGES})]
cases += [("{{ " + expression + " }}", {"text": text}) for expression, text, *_ in EXPRESSIONS]
with open("cases.json", "w") as file:
    json.dump(cases, file)
subprocess.run(["node", "render.mjs"], check=True)
with open("rendered.json") as file:
    script = json.load(file)
# The environment in which transformers renders its templates.
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
python = [environment.from_string(template).render(**values) for template, values in cases]


def readable(code):
    try:
        ast.parse("if x:\n" + code)
    except SyntaxError:
        return False
    return True


turns = [text[text.index("<assistant>"):text.index("<user>Thanks")]
         for text in (python[0], script[0])]
answers = [turn.removeprefix("<assistant>").removesuffix("</assistant>") for turn in turns]
print(f"Python:     {json.dumps(turns[0])}")
print(f"JavaScript: {json.dumps(turns[1])}")
print("  first lines that Python can read after \"if x:\\n\": "
      + ", ".join(json.dumps(readable(answer)) for answer in answers))
assert answers == [CODE, CODE.strip()] and readable(answers[0]) and not readable(answers[1])
for (expression, text, right, seen), one, other in zip(EXPRESSIONS, python[1:], script[1:]):
    print(f"{{{{ {expression} }}}} of {json.dumps(text)}: Python {json.dumps(one)}, "
          f"JavaScript {json.dumps(other)}")
    assert (one, other) == (right, seen)
END
