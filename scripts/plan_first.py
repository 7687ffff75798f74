"""A filter: the line of the plan comes first, then what was said before it, then everything else as it comes.

    papermill ... 2>&1 | python scripts/plan_first.py"""
import sys


def main():
    held = []   # until the plan is there
    for line in sys.stdin:
        if held is None: print(line, end="", flush=True)
        elif line.startswith("plan:"): print(line, *held, sep="", end="", flush=True); held = None
        else: held.append(line)
    print(*(held or []), sep="", end="", flush=True)


if __name__ == "__main__": main()
