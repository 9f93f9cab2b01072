#!/usr/bin/env python3
"""Whole proofs beside another prover, from files to proof, alternating, in one run.

    scripts/compare.py --ours target/release/prover-worker --peer /path/to/rapidsnark/prover keys/pos18 keys/tx14 …

Each folder holds circuit.zkey and witness.wtns. The peer is called as rapidsnark's `prover` is: ZKEY WITNESS PROOF
PUBLIC. Every way of proving runs once unmeasured, then in turn, --rounds times; the table has medians of wall time, the
ratio to the peer's, and the greatest peak memory seen. Our own process verifies each proof before it ends, the peer's
does not. Needs nothing but Python 3 and Linux.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time


def run(command, extra):
    """Seconds of wall time and peak memory in MB of one run."""
    env = dict(os.environ, **extra)
    start = time.monotonic()
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    stderr = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {child.returncode}: {stderr.decode(errors='replace')}")
    return seconds, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="the prover-worker binary")
    parser.add_argument("--peer", help="rapidsnark's prover")
    parser.add_argument("--peer-env", action="append", default=[], help="NAME=VALUE for the peer")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of our proofs")
    parser.add_argument("--cpu", action="append", help="value of PROVER_CPU, repeatable (default: auto)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("keys", nargs="+", type=pathlib.Path)
    args = parser.parse_args()

    sets = args.cpu or ["auto"]
    heads = [f"ours, {cpu}" for cpu in sets]
    print("| circuit | way | median, s | fastest, s | slowest, s | peak memory, MB | times as fast as the peer |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as out:
        proof, public = f"{out}/proof.json", f"{out}/public.json"
        for key in args.keys:
            files = [str(key / "circuit.zkey"), str(key / "witness.wtns"), proof, public]
            ways = [
                (head, [args.ours, "prove", *files], {"PROVER_CPU": cpu, "PROVER_THREADS": str(args.threads)})
                for head, cpu in zip(heads, sets)
            ]
            if args.peer:
                peer_env = dict(setting.split("=", 1) for setting in args.peer_env)
                ways.append(("peer", [args.peer, *files], peer_env))
            for _, command, env in ways:
                run(command, env)
            seen = {name: [] for name, _, _ in ways}
            for _ in range(args.rounds):
                for name, command, env in ways:
                    seen[name].append(run(command, env))
            peer = statistics.median(s for s, _ in seen["peer"]) if args.peer else None
            for name, _, _ in ways:
                times = [s for s, _ in seen[name]]
                median = statistics.median(times)
                ratio = f"{peer / median:.2f}" if peer else ""
                peak = max(m for _, m in seen[name])
                print(
                    f"| {key.name} | {name} | {median:.3f} | {min(times):.3f} | {max(times):.3f} | {peak:.0f} | {ratio} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
