"""How a measurement of `scripts/benchmark.py` begins and is saved: as JSON, and as markdown next to it."""

from __future__ import annotations

from scripts.bench.device import device_facts


def begin_record(args, threads: int):
    """Returns (the device, the head of a record), torch set to so many threads if they are given."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return device, {"command": args.command, "status": "measured", "device": device_facts(device)}


def pairs(facts: dict) -> str:
    """Returns `name value, ...` on one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def save(args, result: dict, lines: list[str]) -> int:
    """Prints the table and writes it as markdown next to the JSON; what was measured is not replaced by "not run"."""
    from utils.atomic import atomic_write, write_json
    from utils.json_reader import read_json

    stem = args.name or args.config_path.stem.removeprefix("benchmark_") + ("_copies" if args.windows else "")
    path = args.output_folder / f"benchmark_{args.kind}_{stem}.json"
    facts = [pairs(result[key]) for key in ("device", "model") if key in result]
    text = "\n\n".join([f"`{args.command}`", *facts, "\n".join(lines)]) + "\n"
    print(text)
    if result["status"] == "not run" and path.exists() and read_json(path).get("status") != "not run":
        print(f"kept {path}, which holds a measurement")
        return 0
    write_json(path, result)
    atomic_write(path.with_suffix(".md"), text.encode())
    print(f"saved {path} and {path.with_suffix('.md')}")
    return 0
