"""`python run.py` runs the pets experiment; `python run.py --help` lists what can be set."""

from cyclediff.cli.main import main

if __name__ == "__main__":
    main()
