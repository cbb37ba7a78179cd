"""``python -m ccf_plugin`` is ``ccf``."""

from ccf_plugin.cli import main

if __name__ == "__main__":
    main()
