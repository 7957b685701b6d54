"""`python -m streamavatar.cli`."""

from streamavatar.cli import main

if __name__ == "__main__":
    main()
