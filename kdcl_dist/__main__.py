"""`python -m kdcl_dist` is the command `kdcl`."""

from kdcl_dist.cli import main

if __name__ == "__main__":
    main()
