"""`python -m hires_gan` is the `hires-gan` command: the form that `accelerate launch -m` needs."""

from hires_gan.cli import main

if __name__ == "__main__":
    main()
