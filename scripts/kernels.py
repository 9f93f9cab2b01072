"""Checks the report of nvcc's assembler on kernels/ against kernels/budget.txt. scripts/kernels.sh calls it.

Reads cargo's messages (--message-format=json) to find the output folder of build.rs, unless --out names it.

  --write   writes docs/gpu/compiler.md
  --budget  writes kernels/budget.txt from the report, which then passes
"""

import argparse
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUDGET = ROOT / "kernels/budget.txt"
TABLE = ROOT / "docs/gpu/compiler.md"


def out_dir(messages):
    found = None
    for line in messages:
        if not line.startswith("{"):
            continue
        message = json.loads(line)
        if message.get("reason") == "build-script-executed" and "prover-worker" in message["package_id"]:
            found = pathlib.Path(message["out_dir"])
    return found


def read_report(text):
    """{kernel: {arch: (registers, shared, spills)}}; the functions a kernel calls count for their spills."""
    kernels, present = {}, None
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            present = kernels.setdefault(match[1], {}).setdefault(match[2], [0, 0, 0])
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if present is not None:
                present[2] += int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            present[0] = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            present[1] = int(shared[1]) if shared else 0
    return kernels


def read_budget():
    budget = {}
    for number, line in enumerate(BUDGET.read_text().splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) not in (2, 3) or not all(word.isdigit() for word in words[1:]):
            sys.exit(f"{BUDGET}:{number}: expected a kernel, its registers and perhaps bytes of spills, got \"{line}\"")
        budget[words[0]] = (int(words[1]), int(words[2]) if len(words) == 3 else 0)
    return budget


def write_budget(kernels):
    lines = [
        "# Registers that a kernel may use on any architecture, the most of all, and bytes that it may spill there: none",
        "# unless there is a second number. scripts/kernels.sh checks them.",
    ]
    for kernel, archs in sorted(kernels.items()):
        spills = max(spills for _, _, spills in archs.values())
        lines.append(f"{kernel} {max(registers for registers, _, _ in archs.values())}{f' {spills}' if spills else ''}")
    BUDGET.write_text("\n".join(lines) + "\n")


def faults(kernels, budget):
    for kernel, archs in sorted(kernels.items()):
        if kernel not in budget:
            yield f"kernels/budget.txt: expected a line for {kernel}, got none"
        most, spilled = budget.get(kernel, (255, 0))
        for arch, (registers, _, spills) in archs.items():
            if spills > spilled:
                yield f"{kernel}, sm_{arch}: expected {spilled} bytes of spills at most, got {spills}"
            if registers > most:
                yield f"{kernel}, sm_{arch}: expected {most} registers at most, got {registers}"
    for kernel in sorted(budget.keys() - kernels.keys()):
        yield f"kernels/budget.txt: expected only kernels there are, got {kernel}"


def table(kernels, archs, version, sizes):
    yield "# What the compiler says"
    yield ""
    yield f"Written by `scripts/kernels.sh --write`, with {version}. Each cell: registers of a thread, bytes of shared"
    yield "memory that the kernel has of itself (most ask for theirs at launch), bytes written and read by spills."
    yield ""
    yield "| kernel | " + " | ".join(f"sm_{arch}" for arch in archs) + " |"
    yield "|---|" + "---|" * len(archs)
    for kernel, found in sorted(kernels.items()):
        cells = [" · ".join(map(str, found[arch])) if arch in found else "" for arch in archs]
        yield f"| `{kernel}` | " + " | ".join(cells) + " |"
    yield ""
    yield "| file | bytes |"
    yield "|---|---|"
    for name, size in sizes:
        yield f"| {name} | {size} |"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=pathlib.Path)
    arguments.add_argument("--write", action="store_true")
    arguments.add_argument("--budget", action="store_true")
    options = arguments.parse_args()
    out = options.out or out_dir(sys.stdin)
    if out is None:
        sys.exit("cargo's messages name no folder of build.rs")
    if not (out / "ptxas.txt").is_file():
        sys.exit(f"{out}: no report of the compiler (CUDA_ARCHS=none?)")

    kernels = read_report((out / "ptxas.txt").read_text())
    if not kernels:
        sys.exit(f"{out}/ptxas.txt: expected kernels, got none")
    archs = sorted({arch for found in kernels.values() for arch in found}, key=lambda arch: int(re.sub(r"\D", "", arch)))
    if options.budget:
        write_budget(kernels)
    if options.write:
        sizes = [(f"machine code for sm_{arch}", (out / f"kernels.{arch}.cubin").stat().st_size) for arch in archs]
        sizes.append(("the fat binary, compressed", (out / "kernels.fatbin").stat().st_size))
        version = re.search(r"Cuda compilation tools, release (\S+),", (out / "nvcc.txt").read_text())
        version = f"nvcc {version[1]}" if version else "nvcc"
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text("\n".join(table(kernels, archs, version, sizes)) + "\n")

    found = list(faults(kernels, read_budget()))
    for fault in found:
        print(fault, file=sys.stderr)
    print(f"{len(kernels)} kernels for {', '.join('sm_' + arch for arch in archs)}: {len(found)} faults")
    sys.exit(1 if found else 0)


main()
