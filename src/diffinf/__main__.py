"""`python -m diffinf` is the command line."""

from diffinf.cli import main

if __name__ == "__main__":
    main()
