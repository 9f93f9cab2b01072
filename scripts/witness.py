#!/usr/bin/env python3
"""Compares witness generation, from files to a .wtns file: rewritten, plain, and by other programs, in one run.

Usage:

    scripts/witness.py --ours target/release/prover-worker --snarkjs node_modules/.bin/snarkjs --native DIR circuits/tx14

Each folder holds circuit.wasm and input.json. The native program, if given, is DIR/NAME_cpp/NAME, as `circom --c` and
its Makefile build it, and is called with INPUT WITNESS. Needs only Python 3.

Every way runs once unmeasured (in which ours compiles the module that it keeps), then once in each of --rounds rounds,
each in a different order. All witnesses of a circuit must be equal, byte for byte. --prove also times whole proofs from
inputs, with the folder's circuit.zkey, and reports the share of the witness in them, as our program measures it.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time


def run(command, extra):
    """Wall time of one run, in seconds, and its output."""
    start = time.monotonic()
    done = subprocess.run(list(map(str, command)), env=dict(os.environ, **extra), capture_output=True)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}: {done.stderr.decode(errors='replace')}")
    return seconds, done.stdout


def row(circuit, way, times, base):
    median = statistics.median(times)
    print(
        f"| {circuit} | {way} | {median * 1e3:.1f} | {min(times) * 1e3:.1f} | {max(times) * 1e3:.1f} | {base / median:.2f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="the prover-worker program")
    parser.add_argument("--snarkjs", help="snarkjs' program")
    parser.add_argument("--native", type=pathlib.Path, help="folder of circom's C++ programs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prove", action="store_true", help="time whole proofs too")
    parser.add_argument("circuits", nargs="+", type=pathlib.Path)
    args = parser.parse_args()

    print("| circuit | way | median, ms | fastest, ms | slowest, ms | times as fast as plain |")
    print("|---|---|---|---|---|---|")
    shares = []
    with tempfile.TemporaryDirectory() as out:
        data = {"PROVER_DATA_DIR": f"{out}/data"}
        for circuit in args.circuits:
            wasm, given, name = circuit / "circuit.wasm", circuit / "input.json", circuit.name
            ours = lambda to: [args.ours, "witness", "--wasm", wasm, "--input", given, "--out", to]
            ways = [
                ("ours, plain", ours, {"PROVER_WITNESS": "plain", **data}),
                ("ours, rewritten", ours, {"PROVER_WITNESS": "auto", **data}),
            ]
            if args.native:
                program = args.native.resolve() / f"{name}_cpp" / name
                ways.append(("circom's C++", lambda to: [program, given, to], {}))
            if args.snarkjs:
                ways.append(("snarkjs", lambda to: [args.snarkjs, "wtns", "calculate", wasm, given, to], {}))
            wtns = [f"{out}/{i}.wtns" for i in range(len(ways))]
            for (_, command, env), to in zip(ways, wtns):
                run(command(to), env)
            contents = {pathlib.Path(to).read_bytes() for to in wtns}
            if len(contents) != 1:
                sys.exit(f"{name}: the witnesses differ")
            seen = [[] for _ in ways]
            for i in range(args.rounds):
                # As in compare.py, the order changes from round to round.
                for k in random.Random(i).sample(range(len(ways)), len(ways)):
                    _, command, env = ways[k]
                    seen[k].append(run(command(wtns[k]), env)[0])
            base = statistics.median(seen[0])
            for (way, _, _), times in zip(ways, seen):
                row(name, way, times, base)
            if args.prove:
                command = [args.ours, "prove", "--zkey", circuit / "circuit.zkey", "--wasm", wasm, "--input", given]
                command += ["--proof", f"{out}/proof.json", "--public", f"{out}/public.json", "--json"]
                for way, env in [(way, env) for way, _, env in ways[:2]]:
                    run(command, env)
                    runs = [run(command, env) for _ in range(args.rounds)]
                    reports = [json.loads(printed) for _, printed in runs]
                    shares.append((name, way, statistics.median(s for s, _ in runs), reports))
    if shares:
        print("\n| circuit | way | whole process, ms | of which the witness program's run and its loading, ms | share |")
        print("|---|---|---|---|---|")
    for name, way, whole, reports in shares:
        witness = statistics.median(r["witness_ms"] for r in reports)
        print(f"| {name} | {way} | {whole * 1e3:.0f} | {witness:.0f} | {witness / whole / 10:.0f} % |")


if __name__ == "__main__":
    main()
