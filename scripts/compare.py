#!/usr/bin/env python3
"""Compares whole proofs, from files to proof, with those of other provers in one run.

Usage:

    scripts/compare.py --ours target/release/prover-worker --peer /path/to/rapidsnark/prover keys/pos18 keys/tx14 …

Each folder holds circuit.zkey and witness.wtns. Needs only Python 3 and GNU time.

A peer is called like rapidsnark's `prover`, ZKEY WITNESS PROOF PUBLIC; other provers need a script that takes these
arguments. groth16-prover (--small, instead of --ours or in addition to it) is called the same way. With several peers
(--peer NAME=PROGRAM), all are compared with the first one.

Every way of proving runs once unmeasured, then once in each of --rounds rounds, each in a different order. The table
has medians of wall time, the ratio to the peer's, and the peak memory of one more run. Our own process verifies each
proof before it ends; the peer's does not.
"""

import argparse
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time


def run(command, extra):
    """Wall time of one run, in seconds."""
    env = dict(os.environ, **extra)
    start = time.monotonic()
    child = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seconds = time.monotonic() - start
    if child.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {child.returncode}: {child.stderr.decode(errors='replace')}")
    return seconds


def peak_memory(command, extra):
    """Peak memory of one run, in MB.

    Measured by GNU time, which is small: what a process held before `exec` counts towards the program it becomes, so
    for a child of Python nothing below Python's own 15 MB would show.
    """
    env = dict(os.environ, **extra)
    child = subprocess.run(["time", "-f", "%M", *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if child.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {child.returncode}: {child.stderr.decode(errors='replace')}")
    return int(child.stderr.split()[-1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", help="the prover-worker program")
    parser.add_argument("--small", help="the groth16-prover program")
    parser.add_argument("--peer", action="append", default=[], help="rapidsnark's prover, or NAME=PROGRAM; repeatable")
    parser.add_argument("--peer-env", action="append", default=[], help="NAME=VALUE for the peers")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of our proofs")
    parser.add_argument("--cpu", action="append", help="value of PROVER_CPU, repeatable (default: auto)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("keys", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    if shutil.which("time") is None:
        sys.exit("GNU time is not installed (package time)")

    programs = [("ours", [args.ours, "prove"])] if args.ours else []
    programs += [("groth16-prover", [args.small])] if args.small else []
    if not programs:
        parser.error("one of --ours and --small is needed")
    peers = [peer.split("=", 1) if "=" in peer else ["peer", peer] for peer in args.peer]
    if len({name for name, _ in peers}) < len(peers):
        parser.error("several peers need names: --peer NAME=PROGRAM")
    first = peers[0][0] if peers else "peer"
    named = "the peer" if first == "peer" else first
    print(f"| circuit | way | median, s | fastest, s | slowest, s | peak memory, MB | times as fast as {named} |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as out:
        proof, public = f"{out}/proof.json", f"{out}/public.json"
        for key in args.keys:
            files = [str(key / "circuit.zkey"), str(key / "witness.wtns"), proof, public]
            ways = [
                (f"{name}, {cpu}", [*program, *files], {"PROVER_CPU": cpu, "PROVER_THREADS": str(args.threads)})
                for name, program in programs
                for cpu in args.cpu or ["auto"]
            ]
            peer_env = dict(setting.split("=", 1) for setting in args.peer_env)
            ways += [(name, [program, *files], peer_env) for name, program in peers]
            for _, command, env in ways:
                run(command, env)
            seen = {name: [] for name, _, _ in ways}
            for i in range(args.rounds):
                # A run leaves the machine slower or faster for a while, so the order changes from round to round.
                order = random.Random(i).sample(ways, len(ways))
                for name, command, env in order:
                    seen[name].append(run(command, env))
            peer = statistics.median(seen[first]) if peers else None
            for name, command, env in ways:
                times = seen[name]
                median = statistics.median(times)
                ratio = f"{peer / median:.2f}" if peer else ""
                peak = peak_memory(command, env)
                print(
                    f"| {key.name} | {name} | {median:.4f} | {min(times):.4f} | {max(times):.4f} | {peak:.1f} | {ratio} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
