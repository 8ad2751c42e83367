"""Commands that are killed, meet a full disk, or come in pairs: ``python benchmarks/faults.py``; some ten minutes, as root.

100 SIGKILLs over convert, calibrate, tune, compare and ablate, after which the same command must give the undisturbed result;
30 full disks, which must cost one clear line; 20 pairs of commands on one folder. Written to
``benchmarks/results/faults.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).parents[1] / "tests" / "faults"))
import command_trials

from fas.report.results import versions
from fas.storage import write_whole

RESULTS = Path(__file__).parent / "results" / "faults.json"
COUNTS = {"kills": 100, "disk_full": 30, "pairs": 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("some ten minutes on one core; trials that go wrong are printed")
    with tempfile.TemporaryDirectory() as place:
        bench = command_trials.Bench.of(Path(place))
        for part in args.parts:
            if part == "disk_full" and not command_trials.may_mount(Path(place) / "disk"):
                print("disk_full is left out: small disks need the right to mount")
                continue
            found = command_trials.counted(bench, part, COUNTS[part], args.seed)
            about = {"command": f"faults.py --parts {part}", "seed": args.seed, "versions": versions()}
            kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            write_whole(RESULTS, json.dumps(kept | {part: about | found}, indent=1) + "\n")
            print(f"{part}: {found['cases']} trials, {found['wrong']} wrong, {found['seconds']} s")


if __name__ == "__main__":
    main()
