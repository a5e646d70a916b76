"""`python -m yalm`, for launchers such as torchrun that start modules."""

from yalm.cli import main

if __name__ == "__main__":
    main()
