"""`python -m ballast.cli`, for launchers."""

from ballast.cli import main

if __name__ == "__main__":
    main()
