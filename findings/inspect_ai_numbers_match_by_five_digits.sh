#!/usr/bin/env bash
# Guess: inspect_ai's scorer match(numeric=True), which inspect_evals has for GSM8K and MGSM,
# compares the answer's number with the target's: "18", "18.0", "$18" and "1.8e1" are the same, and
# an answer that is another number is wrong.
#
# inspect_ai 0.3.285: it writes both numbers with five significant digits and compares these
# strings. A number of up to five digits has to be right; of a longer one only the first five, and
# the rest may be anything that rounds to the same. So 1234567 is a correct answer where the target
# is 1234599 (both are "1.2346e+06"), and 100004 where it is 100000, as happens if a model
# calculates with large numbers and is off by a little. Decimals have the same limit: 3.14163 is
# 3.1416, and 12.3456 is 12.3464. The answer that the log shows for such a sample is already the
# rounded one, "1.2346e+06", so that the mistake can't be seen there. All values of location do it,
# "exact" too. Without numeric=True the texts are compared, and the wrong answers are wrong.
#
# Seen (50 answers each; the target is a random number, the answer that number or the next one):
#   digits  accuracy if all are right  if all are one more  the latter without numeric
#        4                       1.00                 0.00                        0.00
#        5                       1.00                 0.00                        0.00
#        6                       1.00                 0.94                        0.00
#        7                       1.00                 1.00                        0.00
#        8                       1.00                 1.00                        0.00
#   target 1234599, answer 1234567: C, shown as 1.2346e+06
#   target 3.1416, answer 3.14163: C, shown as 3.1416
#   target 12.3464, answer 12.3456: C, shown as 12.346

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'inspect_ai==0.3.285' 'numpy==2.4.6'
cd "$folder"

venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import random

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import match

NUMBER = 50


def run(pairs, *arguments, **options):
    """Score answers, given as pairs of target and answer, with a model that only says them."""
    outputs = [ModelOutput.from_content("mockllm/model", str(answer)) for _, answer in pairs]
    for output in outputs:
        output.usage = ModelUsage()  # else it would look for a tokenizer to count the tokens
    dataset = [Sample(input="How many?", target=str(target)) for target, _ in pairs]
    (log,) = eval(Task(dataset=dataset, scorer=match(*arguments, **options)), display="none",
                  model=get_model("mockllm/model", custom_outputs=outputs, memoize=False),
                  log_dir="logs", max_samples=1)
    assert log.status == "success" and len(log.samples) == len(pairs)
    return log


def accuracy(pairs, **options):
    pairs = [(target, f"So the answer is {answer}.") for target, answer in pairs]
    return run(pairs, **options).results.scores[0].metrics["accuracy"].value


print("digits  accuracy if all are right  if all are one more  the latter without numeric")
random.seed(0)
for digits in range(4, 9):
    numbers = [random.randrange(10 ** (digits - 1), 10 ** digits - 1) for _ in range(NUMBER)]
    right = accuracy([(number, number) for number in numbers], numeric=True)
    wrong = [(number, number + 1) for number in numbers]
    numeric = accuracy(wrong, numeric=True)
    text = accuracy(wrong)
    print(f"{digits:6}  {right:25.2f}  {numeric:19.2f}  {text:26.2f}")
    same = sum(f"{a:.4e}" == f"{b:.4e}" for a, b in wrong) / NUMBER  # by hand
    assert right == 1 and text == 0 and abs(numeric - same) < 1e-9
    assert numeric == 0 if digits < 6 else numeric > 0.8

pairs = [("1234599", "1234567"), ("3.1416", "3.14163"), ("12.3464", "12.3456")]
for location in ("end", "begin", "any", "exact"):
    for (target, answer), sample in zip(pairs, run(pairs, location, numeric=True).samples):
        score = sample.scores["match"]
        if location == "end":
            print(f"target {target}, answer {answer}: {score.value}, shown as {score.answer}")
        assert score.value == "C" and score.answer != answer
END
