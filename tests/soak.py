"""Kill training runs 200 times, at random moments, and compare each finished run with one that was
left alone: python tests/soak.py [kills] [seed]
"""

import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from test_interruptions import LONG, PLACES, kill_again_and_again, results, run  # noqa: E402

import config  # noqa: E402
import prepare  # noqa: E402


def main():
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 1_000_000
    print(f"{kills} kills, seed {seed}", flush=True)
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        text = folder / "text.txt"
        text.write_text((ROOT / "input.txt").read_text(encoding="utf-8")[:20000], encoding="utf-8")
        config.run(prepare.main, [f"--input={text}", f"--out_dir={folder / 'data'}",
                                  "--vocab_size=300"])
        expected = {}
        for optimizer in ("adamw", "muon"):
            arguments = [*LONG, f"--data_dir={folder / 'data'}", f"--optimizer={optimizer}"]
            code, output = run(arguments, folder / optimizer)
            assert code == 0, output
            expected[optimizer] = arguments, results(folder / optimizer)
        killed = 0
        while killed < kills:
            optimizer = dice.choice(("adamw", "muon"))
            arguments, finished = expected[optimizer]
            out = folder / f"killed_{killed}"
            kill_again_and_again(arguments, out, dice)
            if results(out) != finished:
                raise SystemExit(f"seed {seed}: a run with {optimizer} ended with other results")
            killed += len(PLACES)
            print(f"{killed} kills: {optimizer} ended with the same bits", flush=True)


if __name__ == "__main__":
    main()
